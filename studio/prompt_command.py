"""`python -m studio prompt-report`: what a model really gets of a prompt."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from studio.errors import InvalidRequest
from studio.prompt_report import EncoderReport, PromptReport, TextReport
from studio.spec import GenerationRequest, parse_request
from studio.store.library import Library

ReadRequests = Callable[[Path, list[str]], list[GenerationRequest]]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `prompt-report`."""
    parser.add_argument("prompt", nargs="?", help="the prompt; or give --request")
    parser.add_argument("--negative", default="", metavar="TEXT", help="negative prompt")
    parser.add_argument("--model", default="shapes", help="id of the model")
    parser.add_argument("--request", type=Path, help="JSON file: a request or a list of them, in place of a prompt")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="replace a field of each")
    parser.add_argument("--json", action="store_true", help="the whole report, one object a request")


def wanted_requests(flags: argparse.Namespace, read_requests: ReadRequests) -> list[GenerationRequest]:
    """Return the requests that the flags name.

    Raises:
        InvalidRequest: if there is neither a prompt nor a request, or both, or one is wrong.
    """
    if (flags.prompt is None) == (flags.request is None):
        raise InvalidRequest("prompt", "give a prompt, or a request file with --request; one of the two")
    if flags.request:
        return read_requests(flags.request, flags.set)
    if flags.set:
        raise InvalidRequest("set", "--set goes with --request; with a prompt there are --model and --negative")
    return [parse_request({"prompt": flags.prompt, "negative_prompt": flags.negative, "model": flags.model})]


def print_reports(library: Library, requests: list[GenerationRequest], *, as_json: bool) -> None:
    """Print a report for each request."""
    from studio.store.prompt_reports import PromptReports

    made = [PromptReports(library).report(request) for request in requests]
    if as_json:
        print(json.dumps([one.model_dump(mode="json") for one in made], indent=1))
        return
    print("\n\n".join("\n".join(lines_of(one)) for one in made))


def lines_of(report: PromptReport) -> list[str]:
    """Return a report as people read it."""
    lines = [f"{report.model} ({report.family})"]
    for name, text in (("prompt", report.prompt), ("negative prompt", report.negative_prompt)):
        if text.text or name == "prompt":
            lines += _text_lines(name, text)
    lists = {"LoRA": report.loras, "embeddings": report.embeddings, "words it does not know": report.unknown_words}
    lists |= {f"unknown {kind}": names for kind, names in report.unknown.items()}
    lines += [f"{label}: {', '.join(names)}" for label, names in lists.items() if names]
    return [*lines, *(f"note: {note}" for note in report.notes), *(f"refused: {why}" for why in report.problems)]


def _text_lines(name: str, text: TextReport) -> list[str]:
    lines = [f"{name}: {text.tokens}/{text.limit} tokens" + (" (ignored)" if text.ignored else "")]
    if len(text.moments) > 1:
        lines += [f"  from {start:.0%} of the steps: {said}" for start, said in text.moments]
    return lines + [line for encoder in text.encoders for line in _encoder_lines(encoder)]


def _encoder_lines(encoder: EncoderReport) -> list[str]:
    if encoder.problem:
        return [f"  {encoder.name}: {encoder.problem}"]
    lines = []
    for number, chunk in enumerate(encoder.chunks, 1):
        words = " ".join(one.text if one.weight == 1 else f"{one.text}({one.weight:.3g})" for one in chunk)
        lines.append(f"  {encoder.name}, chunk {number}: {words}")
    return [*lines, f"  {encoder.name}, not read: {encoder.cut}"] if encoder.cut else lines
