"""The story that everybody in the field knows, on the real MNIST."""

import pytest

import advbench

pytestmark = [pytest.mark.usefixtures("cache"), pytest.mark.slow]


def test_pgd_breaks_an_undefended_convnet_and_adversarial_training_holds(tmp_path, data_dir):
    result = advbench.run(
        dataset="mnist",
        data_dir=data_dir,
        matrix="white-box,transfer",
        architecture="wong2018/small",
        defense="none,pgd-linf(steps=5, step_size=0.35)",
        attack="pgd",
        epsilon=0.3,
        train_examples=12_000,
        epochs=10,
        n_examples=300,
        out=tmp_path / "out",
        device="cpu",
        jobs=2,
    )
    assert result.exit_code == 0
    frame = result.frame
    white = frame[frame["matrix"] == "white-box"].set_index("target")
    transfer = frame[frame["matrix"] == "transfer"].set_index(["source", "target"])["robust_accuracy"]
    robust = "pgd-linf(step_size=0.35, steps=5)"
    assert (white["clean_accuracy"] > 0.93).all()
    assert white.loc["none", "robust_accuracy"] < 0.05
    assert white.loc[robust, "robust_accuracy"] > 0.55
    assert transfer["none", robust] > transfer[robust, robust]
