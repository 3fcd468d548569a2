"""What can be loaded: every address once, and each names the model that it is listed under."""

import json

import pytest

from vit_jax import cli, stores
from vit_jax.families.loadable import loadable
from vit_jax.families.registry import of_repository, registered, resolve


def test_every_repository_of_the_hub_is_known_as_the_model_that_it_holds():
    rows = list(loadable())
    addresses = [row.address for row in rows]
    assert len(set(addresses)) == len(addresses) > 200
    assert all(stores.is_address(address) for address in addresses)
    for row in rows:
        named = resolve(f"{row.name}.{row.tag}" if row.tag else row.name)
        assert named.config == registered()[row.name].config
        if row.address.startswith("hf://"):
            found = of_repository(row.address.removeprefix("hf://"))
            assert found is not None, row
            assert found.config == named.config, row


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf://google/vit-base-patch16-224", {"name": "ViT-B_16", "licence": "Apache-2.0"}),
        (
            "hf://timm/deit3_small_patch16_224.fb_in1k",
            {"name": "deit3_small_patch16_224", "tag": "fb_in1k", "top1": 81.4},
        ),
        ("gs://vit_models/sam/ViT-S_16.npz", {"name": "ViT-S_16", "params": 22050664}),
    ],
)
def test_the_command_lists_weights(address, expected, capsys):
    assert cli.main(["models", address, "--weights", "--json"]) == 0
    rows = {row["address"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows[address] | expected == rows[address]
    assert rows[address]["image_size"] == [224, 224]


def test_the_table_shows_what_to_load(capsys):
    assert cli.main(["models", "deit3_small", "--weights"]) == 0
    out = capsys.readouterr().out
    assert "hf://timm/deit3_small_patch16_224.fb_in1k" in out
    assert "81.4" in out
    assert cli.main(["models", "nothing-such", "--weights"]) == 2
    assert "no published weights match 'nothing-such'" in capsys.readouterr().err
