"""advbench: a benchmark and leaderboard harness for adversarial robustness."""

__version__ = "0.1.0"
