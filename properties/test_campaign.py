"""A million examples on right layers, under seeds drawn anew: nothing that must hold fails."""

import os

import campaign
import pytest


@pytest.mark.nightly
def test_no_alarm(tmp_path):
    found = campaign.summary(campaign.run(1_000_000, tmp_path, os.cpu_count() or 1))
    assert not found["alarms"]


def test_right_layers_are_named_once():
    layers = [it.key for it in campaign.layers()]
    assert len(layers) == len(set(layers))
