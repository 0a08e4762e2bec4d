"""What a training found reaches the records of its model, also where the model came from its checkpoint."""

import json

import pytest

import advbench
from advbench.results.store import Store
from advbench.zoo import checkpoints


def test_the_facts_of_a_training_stand_in_its_records(settings, cache):
    chosen = settings | {"defense": "none,sgr(coefficient=0.2)", "attack": "fgsm", "matrix": "white-box", "epochs": 1}
    advbench.run(**chosen)
    advbench.run(**chosen | {"out": settings["out"] / "again"})
    for out in (settings["out"], settings["out"] / "again"):
        store = Store(out)
        records = {record.target["defense"]["name"]: record for record in map(store.read, store.keys())}
        assert "train_facts" not in records["none"].details
        facts = records["sgr"].details["train_facts"]
        assert facts["coefficient"] == pytest.approx(0.2)
        assert 0 <= facts["clipped_mass"] < 1
        assert facts["mean_diagonal"] == pytest.approx(1)  # signs, none of which is zero
        assert facts.keys() == {"coefficient", "clipped_mass", "mean_diagonal", "decay_length"}


def test_a_checkpoint_keeps_what_happened_in_each_epoch(settings, cache):
    chosen = settings | {"defense": "none,input-noise(passes=2)", "attack": "fgsm", "matrix": "white-box", "epochs": 2}
    advbench.run(**chosen)
    store = Store(chosen["out"])
    for record in map(store.read, store.keys()):
        path = cache / "models" / f"{record.details['model_key']}.safetensors"
        metadata = checkpoints.metadata(path)
        if record.target["defense"]["name"] != "none":
            assert "history" not in metadata  # no training of its own
            continue
        history = json.loads(metadata["history"])
        assert [len(history[name]) for name in ("terms", "validation_accuracy", "seconds")] == [2, 2, 2]
        assert history["terms"][1]["cross_entropy"] < history["terms"][0]["cross_entropy"]
        assert all(0 < share <= 1 for share in history["validation_accuracy"])
        assert history["kept_epoch"] == 1
