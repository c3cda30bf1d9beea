"""The JSON Schema of recipes, which editors read."""

import json

import pytest
from recipe.good_recipes import GOOD, complaints

from mixc import recipe
from mixc.registry import METHODS, READERS, WRITERS


def test_the_schema_is_closed_and_describes_every_key():
    schema = recipe.json_schema()
    json.dumps(schema)
    for section in [schema, *schema["$defs"].values()]:
        assert section["additionalProperties"] is False
        for key, value in section["properties"].items():
            assert value.get("description"), key


def test_the_schema_names_required_keys_and_registered_names():
    schema = recipe.json_schema()
    assert schema["required"] == ["name", "tokenizer", "domains", "mixture"]
    of = schema["$defs"]
    assert of["Domain"]["required"] == ["paths"]
    assert of["Mixture"]["required"] == ["seq_len", "formats"]
    assert of["Solve"]["required"] == ["method"]
    assert of["Solve"]["properties"]["method"]["enum"] == list(METHODS)
    assert of["Mixture"]["properties"]["formats"]["items"]["enum"] == list(WRITERS)
    assert of["Domain"]["properties"]["format"]["anyOf"][0]["enum"] == list(READERS)


def test_the_schema_holds_the_options_of_every_method():
    schema = recipe.json_schema()
    solve = schema["$defs"]["Solve"]["properties"]
    for name, entry in METHODS.items():
        options = schema["$defs"][solve[name]["$ref"].rpartition("/")[2]]
        assert set(options["properties"]) == set(entry.load().Options.model_fields)


def test_the_schema_cannot_be_spoiled_by_callers():
    recipe.json_schema().clear()
    assert "properties" in recipe.json_schema()


@pytest.mark.parametrize("key", ["stage", "pack", "seeds", "nmae", "txt", "paths.0"])
def test_a_key_is_unknown_to_the_loader_exactly_if_the_schema_lacks_it(write, key):
    schema = recipe.json_schema()
    places = {"": schema, "mixture.": schema["$defs"]["Mixture"]}
    for prefix, section in places.items():
        assert key not in section["properties"]
        assert f"MX005]: unknown key '{key.split('.')[0]}'" in complaints(
            write(GOOD), f"{prefix}{key}=1"
        )
