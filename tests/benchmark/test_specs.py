import pytest
from hypothesis import given
from hypothesis import strategies as st

from advbench.registry.specs import Spec, canonical, split_list

names = st.from_regex(r"[a-z][a-z0-9_/-]{0,15}", fullmatch=True)
arguments = st.dictionaries(
    st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True).filter(lambda name: name not in {"name"}),
    st.none() | st.booleans() | st.integers(-999, 999) | st.floats(-1e6, 1e6) | st.text(max_size=8),
    max_size=3,
)


@given(names, arguments)
def test_a_spec_reads_back_from_its_own_text(name, values):
    try:
        spec = Spec.of(name, values)
        parsed = Spec.parse(str(spec))
    except ValueError:
        import keyword

        assert any(keyword.iskeyword(argument) for argument in values)
        return
    assert parsed == spec


@given(st.lists(st.builds(Spec.of, names, arguments), max_size=4))
def test_a_list_of_specs_splits_where_it_was_joined(specs):
    texts = [str(spec) for spec in specs]
    assert split_list(",".join(texts)) == texts


@pytest.mark.parametrize(
    "text", ["", "  ", "pgd(", "pgd(10)", "pgd(steps=)", "pgd(**x)", "pgd(steps=open('x'))", "pgd)(", "a(b=1)c"]
)
def test_what_is_no_spec_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match="Expected") as caught:
        Spec.parse(text)
    assert "\n" not in str(caught.value)


def test_the_order_of_arguments_does_not_matter():
    assert Spec.parse("pgd(steps=3, restarts=2)") == Spec.parse("pgd(restarts=2, steps=3)")


def test_the_canonical_text_has_one_form_and_no_nan():
    assert canonical({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical({"a": float("nan")})
