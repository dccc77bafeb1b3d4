"""Tampered checkpoints and run folders: read as training wrote them, or refused in a sentence."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cltt import checkpoint
from cltt.config import DataSettings, ModelSettings
from cltt.metrics import History
from cltt.models.contrastive import ContrastiveModel
from cltt.models.weights import read_weights
from cltt.training.factory import load_weights
from tests.fuzz.contract import Rng, attempt, demand, spoil, spoil_tree

BUILDS_AN_ENCODER = 0.02  # of the cases: it takes a tenth of a second


class Checkpoints:
    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self._run = folder / "run"
        self._model = ContrastiveModel(nn.Linear(3, 4), nn.BatchNorm1d(4))
        settings = {
            "model": dataclasses.asdict(ModelSettings()),
            "data": dataclasses.asdict(DataSettings(shards="x")),
        }
        self._state = {
            "model": dict(self._model.state_dict()),
            "settings": settings,
            "fingerprint": "0" * 32,
            "optimizer": torch.optim.Adam(self._model.parameters()).state_dict(),
            "history": History().state_dict(),
            "random": [{"torch": torch.get_rng_state()}],
        }

    def case(self, rng: Rng) -> str:
        shutil.rmtree(self._run, ignore_errors=True)
        self._run.mkdir()
        whole, path = self._run / "epoch-0001.pt", self._run / "epoch-0002-step-000003.pt"
        checkpoint.write(whole, self._state)
        self._tamper(rng, path)
        if rng.random() < 0.5:
            (self._run / checkpoint.LATEST).write_bytes(rng.bytes(int(rng.integers(0, 40))))
        else:
            (self._run / checkpoint.LATEST).write_text(
                str(rng.choice(["../../etc/passwd", path.name, "", "\n", "x" * 500]))
            )
        return self._use(rng, path)

    def _tamper(self, rng: Rng, path: Path) -> None:
        way = rng.random()
        state: Any = self._state
        for _ in range(int(rng.integers(0, 3))):
            state = spoil_tree(rng, state) if way < 0.7 else state
        try:
            torch.save({"version": 1, **state} if isinstance(state, dict) and way < 0.65 else state, path)
        except Exception:  # what cannot be saved is no checkpoint
            path.write_bytes(b"")
        if 0.7 <= way < 0.9:
            path.write_bytes(spoil(rng, path.read_bytes()))
        elif way >= 0.9:
            repack(rng, path)

    def _use(self, rng: Rng, path: Path) -> str:
        state, refused = attempt(lambda: checkpoint.load(path))
        attempt(lambda: load_weights(self._model, path))
        attempt(lambda: load_weights(self._model, self._run))
        weights, _ = attempt(lambda: read_weights(path))
        if weights is not None:
            attempt(weights.build_head)
            if rng.random() < BUILDS_AN_ENCODER:
                attempt(weights.build_encoder)
        if rng.random() < 0.1:
            self._try_safetensors(rng)
        if state is not None:
            attempt(lambda: checkpoint.require_parts(path, state, history=dict))
            if isinstance(state.get("history"), dict):
                attempt(lambda: History().load_state_dict(state["history"]))
        found, _ = attempt(lambda: checkpoint.find_latest(self._run))
        demand(found is not None and found[0] is not None, "the intact checkpoint was not found")
        return f"refused: {refused}" if state is None else "read"

    def _try_safetensors(self, rng: Rng) -> None:
        """The format of other programs' weights: eight bytes of a length, a table in JSON, the tensors."""
        header = json.dumps(spoil_tree(rng, {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})).encode()
        content = len(header).to_bytes(8, "little") + header + bytes(8)
        file = self._run / "other.safetensors"
        file.write_bytes(spoil(rng, content) if rng.random() < 0.5 else content)
        attempt(lambda: read_weights(file))


def repack(rng: Rng, path: Path) -> None:
    """The same records, compressed or with one of them spoilt, under checksums that fit."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = str(rng.choice(list(records)))
    records[name] = spoil(rng, records[name]) if rng.random() < 0.7 else records[name] + bytes(1 << 20)
    way = zipfile.ZIP_DEFLATED if rng.random() < 0.3 else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", way) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
