"""The command line: `python -m studio generate|xyz|replay|models|families|prompt-report|convert|merge|download|doctor|…`."""

import argparse
import json
import logging
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from studio.caption_command import add_caption_flags, caption
from studio.dataset_commands import datasets
from studio.doctor_command import add_doctor_flags, dataset_doctor
from studio.errors import InvalidRequest, StudioError
from studio.executors.base import open_engine
from studio.family_table import family_rows, family_table
from studio.lab_command import add_lab_flags, lab
from studio.lease import DeviceLease, FolderLock
from studio.memory import PLANS
from studio.merge_command import add_merge_flags, merge
from studio.model_commands import add_download_flags, download, models, show
from studio.plot_command import add_flags
from studio.prompt_command import add_flags as prompt_flags
from studio.schedulers import SCHEDULERS
from studio.settings import Settings, read_settings
from studio.spec import SEED_MAX, GenerationRequest, parse_request
from studio.store.blobs import BlobStore, limit_pillow
from studio.store.library import Library
from studio.units import IMAGE_FIELDS, pictures_of
from studio.yaml_text import read_setting

if TYPE_CHECKING:
    from studio.drawing import Drawing

DONE, FAILED, INVALID, DIFFERENT, INTERRUPTED = 0, 1, 2, 3, 130
REQUEST_MAX = 4_000_000
TEXTS = ("prompt", "negative_prompt", "model", "vae", *IMAGE_FIELDS)  # never read as numbers


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m studio", description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="data root (default ./data)")
    parser.add_argument("--extra-models", type=Path, action="append", metavar="DIR")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps or auto (default)")
    parser.add_argument("--cpu-threads", type=int)
    parser.add_argument("--memory-plan", choices=["automatic", *PLANS], help="where models' parts lie (automatic)")
    commands = parser.add_subparsers(dest="command", required=True)
    fields = "\n".join(f"  {name}: {field.description}" for name, field in GenerationRequest.model_fields.items())
    generate = commands.add_parser(
        "generate",
        help="make pictures from a request file",
        epilog=f"fields of a request:\n{fields}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    generate.add_argument(
        "--request", type=Path, required=True, help="JSON file: a GenerationRequest, or a list of them"
    )
    generate.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    generate.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="replace a field in every request"
    )
    generate.add_argument(
        "--images", type=Path, metavar="DIR", help="img2img over a folder: each request with each of its pictures"
    )
    plot = commands.add_parser("xyz", help="make an X/Y/Z plot: a picture for every pair of values, and their grid")
    add_flags(plot)
    replay = commands.add_parser("replay", help="make a picture again and compare its pixels")
    replay.add_argument("image", type=Path)
    replay.add_argument("--out", type=Path, required=True)
    for name, text in (
        ("models", "list the models"),
        ("adapters", "list LoRA and embeddings, what they fit and what calls them"),
        ("schedulers", "list the sampling methods"),
        ("families", "list the model families"),
        ("datasets", "list the datasets, with how many pictures and captions each has"),
        ("reindex", "rebuild the index from the picture files"),
    ):
        commands.add_parser(name, help=text).add_argument("--json", action="store_true")
    prompt_flags(commands.add_parser("prompt-report", help="say what a model really gets of a prompt"))
    convert = commands.add_parser("convert", help="make a safe copy (.safetensors) of a pickle of weights")
    convert.add_argument("source", type=Path, help=".pth, .pt, .ckpt or .bin")
    convert.add_argument("target", type=Path, help="new file that ends in .safetensors")
    convert.add_argument("--json", action="store_true")
    add_merge_flags(commands)
    add_lab_flags(commands)
    add_doctor_flags(commands)
    add_caption_flags(commands)
    add_download_flags(
        commands.add_parser("download", help="get a model from the Hugging Face Hub, its mirror, or Civitai")
    )
    doctor = commands.add_parser("doctor", help="say what is wrong with this machine and how to mend it")
    doctor.add_argument("--json", action="store_true")
    doctor.add_argument(
        "--bundle", type=Path, metavar="FILE.zip", help="write a report without secrets for a bug report"
    )
    return parser.parse_args(arguments)


def read_requests(path: Path, overrides: list[str]) -> list[GenerationRequest]:
    """Read one request or a list, with `FIELD=VALUE` overrides.

    Raises:
        InvalidRequest: naming the field, or the file.
    """
    try:
        if path.stat().st_size > REQUEST_MAX:
            raise InvalidRequest(
                "request", f"{path} has {path.stat().st_size:,} bytes; at most {REQUEST_MAX:,} are read"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequest("request", f"{path} cannot be read as JSON: {error}") from None
    requests = content if isinstance(content, list) else [content]
    changes = dict(read_setting(override, lambda name, text: name in TEXTS) for override in overrides)
    for request in requests:
        if not isinstance(request, dict):
            raise InvalidRequest("request", f"{path} must hold a JSON object or a list of them")
    return [parse_request(request | changes) for request in requests]


def generate(settings: Settings, flags: argparse.Namespace) -> int:
    """`generate`: one JSON line a picture on stdout."""
    from studio.store.inputs import canvas_size, take_inputs

    library = Library(settings.model_folders, part_roots=settings.part_roots, runs=settings.runs)
    blobs = BlobStore(flags.out / "blobs")
    if flags.images:
        return generate_folder(settings, flags, library, blobs)
    given, folder = read_requests(flags.request, flags.set), flags.request.parent
    requests = [library.with_files(take_inputs(request, blobs, folder), folder) for request in given]
    jobs = [library.job(request, secrets.randbelow(SEED_MAX - 64), canvas_size(request, blobs)) for request in requests]
    drawing = open_drawing(settings, blobs, flags.out)
    for number, job in enumerate(jobs):
        drawing.draw(job, request=number)
        if drawing.stopped:
            return INTERRUPTED
    return DONE


def open_drawing(settings: Settings, blobs: BlobStore, out: Path) -> "Drawing":
    """Return what draws into a folder."""
    from studio.drawing import Drawing

    return Drawing(open_engine(settings), blobs, out)


def generate_folder(settings: Settings, flags: argparse.Namespace, library: Library, blobs: BlobStore) -> int:
    """`generate --images DIR`: every request with every picture of a folder; what is no picture is told and passed over."""
    from studio.store.folders import files_of, short_stem
    from studio.store.inputs import canvas_size, take_inputs

    files, drawing, drawn = files_of(flags.images), None, 0
    requests = read_requests(
        flags.request, [*flags.set, "image=given"]
    )  # wrong values are told before a picture is read
    folder, plain = flags.request.parent, [request.model_copy(update={"image": None}) for request in requests]
    shared = [library.with_files(take_inputs(request, blobs, folder), folder) for request in plain]
    for request in requests:
        library.get(request.model)
    for path in files:
        try:
            taken = blobs.add(path, "image")
            wanted = [request.model_copy(update={"image": taken}) for request in shared]
            jobs = [
                library.job(request, secrets.randbelow(SEED_MAX - 64), canvas_size(request, blobs))
                for request in wanted
            ]
        except InvalidRequest as error:
            print(f"{path.name} is passed over: {error}", file=sys.stderr, flush=True)
            continue
        drawing = drawing or open_drawing(settings, blobs, flags.out)
        for number, job in enumerate(jobs):
            facts = {"prefix": f"{short_stem(path)}-", "request": number, "source": path.name}
            drawn += len(drawing.draw(job, **facts))
            if drawing.stopped:
                return INTERRUPTED
    if not drawn:
        raise InvalidRequest("images", f"images={str(flags.images)!r} has no picture that could be used")
    return DONE


def xyz(settings: Settings, flags: argparse.Namespace) -> int:
    """`xyz`: the cells of a plot and their grid, one JSON line each."""
    from studio.plot_command import draw_plot, is_picture, read_plot, resolve_cells
    from studio.plots import cells_of
    from studio.store.inputs import take_inputs

    spec, library, blobs = (
        read_plot(flags, read_requests),
        Library(settings.model_folders, part_roots=settings.part_roots, runs=settings.runs),
        BlobStore(flags.out / "blobs"),
    )
    if is_picture(flags.request):  # a grid names the pictures of its base by their content
        from studio.replaying import blob_finder

        load = blob_finder(flags.request, settings, flags.out)
        for name, reference in pictures_of(spec.base).items():
            load(reference, name)
    else:
        folder = flags.request.parent
        base = library.with_files(take_inputs(spec.base, blobs, folder), folder)
        spec = spec.model_copy(update={"base": base})
    cells = cells_of(spec)
    resolved = resolve_cells(spec, cells, library, blobs, flags.request.parent)
    return DONE if draw_plot(spec, cells, resolved, open_drawing(settings, blobs, flags.out)) else INTERRUPTED


def replay(settings: Settings, flags: argparse.Namespace) -> int:
    """`replay`: make the same picture again; `identical`, or one line a difference."""
    from studio.plots import grid_sentence
    from studio.replaying import blob_finder, part_differences, parts_then, pixel_difference, remake
    from studio.store.metadata import read_picture

    if not flags.image.is_file():
        raise InvalidRequest("image", f"image={str(flags.image)!r} is not there; name a picture that Studio made")
    found = read_picture(flags.image)
    record = found.record
    if found.grid:
        raise InvalidRequest("image", grid_sentence(found.grid, str(flags.image)))
    if record is None:
        raise InvalidRequest(
            "image",
            f"{flags.image} was not made by Studio, or its `studio` chunk was removed; there is nothing to replay",
        )
    library = Library(settings.model_folders, part_roots=settings.part_roots, runs=settings.runs)
    model = library.reference(library.get(record.model.id), record.request.refiner)
    request = library.with_loras(record.request)  # a file may lie in another folder by now
    parts = parts_then(record, library.parts_of(request))
    now = record.model_copy(update={"request": request, "model": model, "parts": parts})
    engine = open_engine(settings.model_copy(update={"cpu_threads": record.machine.cpu_threads}))
    with DeviceLease(engine.device.key).held():
        made = remake(engine, now, blob_finder(flags.image, settings, flags.out), flags.out)
    lines = (
        [f"model: {record.model.sha256[:12]} then, {model.sha256[:12]} now"]
        if model.sha256 != record.model.sha256
        else []
    )
    lines += part_differences(record.parts, parts)
    beside = {
        "refiner": (record.model.refiner, model.refiner),
        "rest of the model": (record.model.donor, model.donor),
    }
    for name, (one, other) in beside.items():
        if one and other and one.sha256 != other.sha256:
            lines.append(f"{name}: {one.sha256[:12]} then, {other.sha256[:12]} now")
    was, here = record.machine.model_dump(), engine.device.machine.model_dump()
    lines += [f"{name}: {was[name]} then, {here[name]} now" for name in was if was[name] not in ("", here[name])]
    pixels = pixel_difference(flags.image, made)
    print("\n".join([pixels, *lines] if pixels else ["identical"]))
    return DIFFERENT if pixels else DONE


def adapters(settings: Settings, flags: argparse.Namespace) -> int:
    """`adapters`: every LoRA and embedding, what it fits and what its file says."""
    from studio.store.embeddings import embedding_rows
    from studio.store.lora_facts import lora_rows

    parts = Library(settings.model_folders, part_roots=settings.part_roots, runs=settings.runs).parts
    return show(lora_rows(parts.parts("lora")) + embedding_rows(parts.parts("embedding")), flags.json)


def schedulers(settings: Settings, flags: argparse.Namespace) -> int:
    """`schedulers`: names and the schedule types that each can follow."""
    return show(
        [{"name": name, "class": s.class_name, "sigmas": s.sigmas} for name, s in SCHEDULERS.items()], flags.json
    )


def families(settings: Settings, flags: argparse.Namespace) -> int:
    """`families`: what each model family can do; without JSON the table of docs/families.md."""
    if flags.json:
        return show(family_rows(), True)
    print(family_table())
    return DONE


def reindex(settings: Settings, flags: argparse.Namespace) -> int:
    """`reindex`: forget the index and read every picture file again."""
    from studio.store.gallery import Gallery
    from studio.store.index import Database, ImageIndex, put_aside_damaged

    lock = FolderLock(settings.data_dir)  # a running app writes pictures and rows between our reading and our writing
    if set_aside := put_aside_damaged(settings.data_dir / "studio.db"):
        print(f"the index was damaged and is now {set_aside}; the jobs that waited in it are lost", file=sys.stderr)
    gallery = Gallery(settings.data_dir / "images", ImageIndex(Database(settings.data_dir / "studio.db")))
    number = gallery.reconcile(rebuild=True)
    lock.release()
    print(json.dumps({"images": number}) if flags.json else f"{number} pictures in the index")
    return DONE


def prompt_report(settings: Settings, flags: argparse.Namespace) -> int:
    """`prompt-report`: tokens by chunk and text encoder, what is cut, ignored or unknown."""
    from studio.prompt_command import print_reports, wanted_requests

    library = Library(settings.model_folders, part_roots=settings.part_roots, runs=settings.runs)
    print_reports(library, wanted_requests(flags, read_requests), as_json=flags.json)
    return DONE


def convert(settings: Settings, flags: argparse.Namespace) -> int:
    """`convert`: a safe copy of a pickle of weights."""
    from studio.convert import convert as make_copy

    number = make_copy(flags.source, flags.target)
    answer = {"path": str(flags.target), "tensors": number}
    print(json.dumps(answer) if flags.json else f"{flags.target}: {number} tensors")
    return DONE


def doctor(settings: Settings, flags: argparse.Namespace) -> int:
    """`doctor`: findings about this machine, and a bundle for bug reports."""
    from studio.doctor import examine, write_bundle

    findings = examine(settings)
    if flags.bundle:
        write_bundle(flags.bundle, findings, settings)
    if flags.json:
        print(json.dumps([finding.model_dump() for finding in findings], indent=1))
    else:
        for finding in findings:
            print(
                f"{'ok ' if finding.ok else 'BAD'}  {finding.name}: {finding.text}"
                + (f" -> {finding.cure}" if finding.cure else "")
            )
    return DONE if all(finding.ok for finding in findings) else FAILED


COMMANDS = {
    c.__name__.replace("_", "-"): c
    for c in (
        generate,
        xyz,
        replay,
        models,
        adapters,
        schedulers,
        families,
        datasets,
        reindex,
        prompt_report,
        convert,
        merge,
        download,
        doctor,
        lab,
        dataset_doctor,
        caption,
    )
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit code: 0 done, 1 failed, 2 invalid, 3 not identical, 130 interrupted."""
    flags = parse_flags(sys.argv[1:] if arguments is None else arguments)
    if flags.command not in ("download", "caption"):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
    limit_pillow()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    given = {"data_dir": flags.data_dir, "device": flags.device, "cpu_threads": flags.cpu_threads}
    given["extra_models"] = tuple(flags.extra_models) if flags.extra_models else None
    try:
        return COMMANDS[flags.command](read_settings(given, dict(os.environ)), flags)
    except InvalidRequest as error:
        print(error, file=sys.stderr)
        return INVALID
    except StudioError as error:
        print(error, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
