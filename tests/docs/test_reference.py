"""What is written from the code is committed as it would be written now."""

import pytest
from pydantic import Field
from pydantic.fields import FieldInfo

from imagegen.settings import variable_names
from scripts.reference import FILES, allowed, default
from tests.support import ROOT


@pytest.mark.parametrize("name", FILES)
def test_a_committed_file_is_what_the_code_writes(name):
    assert (ROOT / name).read_text() == FILES[name](), f"{name} is out of date: run `make reference`"


@pytest.mark.parametrize("name", [".env.example", "docs/settings.md"])
def test_every_variable_is_described(name):
    content = FILES[name]()
    missing = [variable for variable in variable_names() if f"\n{variable}=" not in content.replace("\n# ", "\n")]
    missing = [variable for variable in missing if f"\n| `{variable}` |" not in content]
    assert missing == []


def test_bounds_and_defaults_in_words():
    assert allowed(FieldInfo.from_annotated_attribute(int, Field(1, ge=1, le=4))) == "1 to 4"
    assert allowed(FieldInfo.from_annotated_attribute(float, Field(1.0, gt=0, le=600))) == "more than 0, at most 600"
    assert allowed(FieldInfo.from_annotated_attribute(bool, Field(True))) == "true, false"
    assert default(FieldInfo.from_annotated_attribute(bool, Field(True))) == "true"
    assert default(FieldInfo.from_annotated_attribute(float, Field(20.0))) == "20"
