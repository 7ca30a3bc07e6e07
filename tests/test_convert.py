"""`convert`: plain weights come through to the bit, code never runs, and a file that is made to do harm harms nobody."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from studio.__main__ import main
from studio.convert import SOURCE_MAX
from studio.convert_main import Refused, plain, read, weights_of
from studio.store.headers import safetensors_problem


class Bomb:
    """Makes a file when it is unpickled as pickle does by default."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self._mark}",)


def tensors() -> dict[str, torch.Tensor]:
    shared = torch.arange(12.0).reshape(3, 4)
    return {
        "a.weight": shared,
        "b.weight": shared.t(),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "n": torch.tensor(7),
    }


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def convert(source: Path) -> tuple[int, Path]:
    target = source.with_suffix(".safetensors")
    return main(["convert", str(source), str(target), "--json"]), target


def complaint(source: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code, target = convert(source)
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert not said.out
    assert not target.exists()
    assert [path for path in source.parent.iterdir() if path.name.startswith(".part")] == []
    return code, said.err


def test_weights_come_through_to_the_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "net.pth"
    torch.save({"params": {"old": torch.zeros(1)}, "params_ema": tensors(), "epoch": 3}, source)
    code, target = convert(source)
    assert code == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(target), "tensors": 4}
    assert safetensors_problem(target) is None
    made = load_file(target)
    assert set(made) == set(tensors())
    assert all(same(made[name], tensor) for name, tensor in tensors().items())
    with safe_open(target, "pt") as file:
        assert file.metadata()["source"] == "net.pth"


def test_what_trainers_wrap_around_weights_is_taken_off(tmp_path: Path) -> None:
    source = tmp_path / "net.pth"
    torch.save({"state_dict": tensors(), "optimizer": {"step": 1}}, source, _use_new_zipfile_serialization=False)
    assert {name: same(made, tensors()[name]) for name, made in plain(weights_of(read(source)))} == dict.fromkeys(
        tensors(), True
    )
    nested = {"image_proj": {"w": torch.ones(1)}, "ip_adapter": {"1.w": torch.ones(1)}, "lr": 0.1}
    assert [name for name, _ in plain(weights_of(nested))] == ["image_proj.w", "ip_adapter.1.w"]
    endless: dict[str, Any] = {}
    endless["model"] = endless
    assert list(plain(weights_of(endless))) == []


def test_code_never_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    mark, source = tmp_path / "ran", tmp_path / "evil.ckpt"
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"state_dict": {"w": torch.ones(2)}, "x": Bomb(mark)}, source)
    assert complaint(source, capsys) == (
        2,
        "evil.ckpt holds code (posix.system), which was not run; get the weights as .safetensors\n",
    )
    assert not mark.exists()
    torch.load(source, weights_only=False)
    assert mark.exists(), "the file would do harm elsewhere"


@pytest.mark.parametrize("form", ["pickle", "torchscript", "deflated", "empty", "page", "cut"])
def test_what_is_no_plain_checkpoint_is_refused(form: str, tmp_path: Path) -> None:
    source, mark = tmp_path / "net.pth", tmp_path / "ran"
    torch.save(tensors(), source)
    whole = source.read_bytes()
    if form == "torchscript":
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(source))
    elif form == "deflated":
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"0" * 50_000_000)
    else:
        others = {
            "pickle": pickle.dumps({"w": Bomb(mark)}),
            "empty": b"",
            "page": b"<html>",
            "cut": whole[: len(whole) // 2],
        }
        source.write_bytes(others[form])
    words = {"pickle": "may be code", "torchscript": "is code", "deflated": "is compressed"}
    with pytest.raises(Refused, match=words.get(form, "cannot be read|may be code")) as caught:
        read(source)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_a_tensor_bomb_meets_the_limit_of_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "bomb.pth"
    torch.save({"w": torch.zeros(1).expand(200_000, 100_000)}, source)  # 80 GB out of four bytes
    assert source.stat().st_size < 10_000
    code, sentence = complaint(source, capsys)
    assert (code, "needs much more memory" in sentence) == (1, True)


def test_wrong_paths_are_told_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "net.pth"
    with source.open("wb") as file:
        file.truncate(SOURCE_MAX + 1)
    sentence = f"net.pth has {SOURCE_MAX + 1:,} bytes; at most {SOURCE_MAX:,} are converted\n"
    assert complaint(source, capsys) == (2, sentence)
    source.write_bytes(b"")
    (tmp_path / "net.safetensors").write_bytes(b"mine")
    for target, words in (("net.bin", "must end in .safetensors"), ("net.safetensors", "exists already")):
        assert main(["convert", str(source), str(tmp_path / target)]) == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "net.safetensors").read_bytes() == b"mine"
    for given, words in (("gone.pth", "is no file"), ("net.safetensors", "already"), ("net.txt", "must end in one of")):
        assert main(["convert", str(tmp_path / given), str(tmp_path / "new.safetensors")]) == 2
        assert words in capsys.readouterr().err
