"""What a training found reaches the records of its model, also where the model came from its checkpoint."""

import pytest

import advbench
from advbench.results.store import Store


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
