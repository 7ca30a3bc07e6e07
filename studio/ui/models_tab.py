"""The Models tab: what is there, what is known about it, and how to get more."""

import html
import shutil
from typing import Any

import gradio as gr

from studio.errors import InvalidRequest, StudioError
from studio.families import FAMILIES
from studio.recommended import RECOMMENDED
from studio.sources import parse_source, readable
from studio.store.models import Model
from studio.store.removal import removal_problem, remove_model
from studio.ui.services import Services
from studio.ui.text import TEXT

POLL = 1.5
RUNNING, DONE = "running", "done"


class ModelsTab:
    """Builds the tab; strangers see only the list.

    Args:
        services: what the handlers work on.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    def build(self, tab: gr.Tab) -> None:
        """Build the content and bind its events."""
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        table = gr.HTML(self.table(), padding=False, elem_id="st-models")
        with gr.Row():
            chosen = gr.Dropdown(
                self.names(),
                value=None,
                label=TEXT["models.chosen"],
                info=TEXT["models.chosen.help"],
                elem_id="st-model-chosen",
            )
        facts = gr.HTML("", padding=False, elem_id="st-model-facts")
        if self._services.public:
            chosen.change(lambda name: self.inspect(name)[0], [chosen], [facts], api_visibility="private")
        else:
            self._build_removal(table, chosen, facts, quiet)
        tab.select(lambda: [self.table(), gr.update(choices=self.names())], None, [table, chosen], **quiet)
        if not self._services.public:
            self._build_download(tab, table, chosen, quiet)

    def _build_removal(self, table: Any, chosen: Any, facts: Any, quiet: dict[str, Any]) -> None:
        with gr.Row():
            remove = gr.Button(TEXT["models.remove"], size="sm", elem_id="st-model-remove", interactive=False)
            sure = gr.Button(TEXT["models.sure"], size="sm", variant="stop", visible=False, elem_id="st-model-sure")
            keep = gr.Button(TEXT["models.keep"], size="sm", visible=False, elem_id="st-model-keep")
        chosen.change(self.inspect, [chosen], [facts, remove, sure, keep], api_visibility="private")
        ask = [remove, sure, keep]
        remove.click(lambda: [gr.update(visible=False), *[gr.update(visible=True)] * 2], None, ask, **quiet)
        keep.click(lambda: [gr.update(visible=True), *[gr.update(visible=False)] * 2], None, ask, **quiet)
        sure.click(self.remove, [chosen], [table, chosen, facts, *ask], **quiet)

    def _build_download(self, tab: gr.Tab, table: Any, chosen: Any, quiet: dict[str, Any]) -> None:
        gr.Markdown(f"### {TEXT['download.title']}\n{TEXT['download.help']}")
        listed = [(f"{one.title} · about {one.size:g} GB", place) for place, one in enumerate(RECOMMENDED)]
        with gr.Row():
            first = gr.Dropdown(
                listed,
                value=None,
                label=TEXT["download.first"],
                info=TEXT["download.first.help"],
                elem_id="st-download-first",
            )
            source = gr.Textbox(
                label=TEXT["download.source"], placeholder=TEXT["download.source.example"], elem_id="st-download-source"
            )
        with gr.Row():
            revision = gr.Textbox(label=TEXT["download.revision"], placeholder="main", elem_id="st-download-revision")
            file = gr.Textbox(
                label=TEXT["download.file"], placeholder=TEXT["download.file.help"], elem_id="st-download-file"
            )
        with gr.Row():
            look = gr.Button(TEXT["download.look"], elem_id="st-download-look")
            start = gr.Button(TEXT["download.start"], variant="primary", interactive=False, elem_id="st-download-start")
        told = gr.HTML("", padding=False, elem_id="st-download-plan")
        bars = gr.HTML(self.bars(), padding=False, elem_id="st-downloads")
        with gr.Row(visible=bool(self._services.downloads.state())) as row:
            which = gr.Dropdown(
                self.running_names(), label=TEXT["download.which"], elem_id="st-download-which", min_width=220
            )
            cancel = gr.Button(TEXT["download.cancel"], size="sm", min_width=80, elem_id="st-download-cancel")
            resume = gr.Button(TEXT["download.resume"], size="sm", min_width=80, elem_id="st-download-resume")
            forget = gr.Button(TEXT["download.forget"], size="sm", min_width=80, elem_id="st-download-forget")
        timer = gr.Timer(POLL, active=False)
        wanted, shown = [source, revision, file], [bars, which, row, timer, table, chosen]
        first.change(self.choose, [first], [*wanted, told, start], **quiet)
        look.click(self.look, wanted, [told, start], api_visibility="private", concurrency_limit=2)
        gr.on([box.input for box in wanted], lambda: gr.update(interactive=False), None, [start], **quiet)
        start.click(self.start, wanted, shown, **quiet)
        timer.tick(self.shown, None, shown, **quiet)
        tab.select(self.shown, None, shown, **quiet)
        for button, action in ((cancel, "cancel"), (resume, "resume"), (forget, "forget")):
            button.click(self._acting(action), [which], shown, **quiet)
        self._build_token()

    def _build_token(self) -> None:
        with gr.Accordion(TEXT["token.title"], open=False, elem_id="st-token"):
            gr.Markdown(TEXT["token.help"])
            with gr.Row():
                site = gr.Dropdown(
                    [("Hugging Face", "hub"), ("Civitai", "civitai")], value="hub", label=TEXT["token.site"]
                )
                token = gr.Textbox(type="password", label=TEXT["token.token"], elem_id="st-token-text")
                save = gr.Button(TEXT["token.save"], size="sm", elem_id="st-token-save")
            said = gr.HTML(self.token_line(), padding=False, elem_id="st-token-said")

            def keep(name: str, text: str) -> list[Any]:
                try:
                    self._services.tokens.save(name, text)
                except StudioError as error:
                    raise gr.Error(str(error), print_exception=False) from error
                return ["", self.token_line()]

            save.click(
                keep, [site, token], [token, said], api_visibility="private", show_progress="hidden", queue=False
            )

    def token_line(self) -> str:
        """Say which tokens there are, never what they are."""
        known = self._services.tokens.known()
        words = {"": TEXT["token.none"], "environment": TEXT["token.environment"], "pasted": TEXT["token.pasted"]}
        return " · ".join(
            f"{title}: {words[known.get(site, '')]}"
            for title, site in (("Hugging Face", "hub"), ("Civitai", "civitai"))
        )

    def names(self) -> list[tuple[str, str]]:
        """Return the choices of models, those that cannot be used too."""
        return [
            (f"{model.title}{' (cannot be used)' if model.problem else ''}", model.id)
            for model in self._services.library.models()
        ]

    def table(self) -> str:
        """Return the list of models as HTML."""
        heads = "".join(
            f"<th>{TEXT[f'models.{name}']}</th>" for name in ("name", "family", "size", "dtype", "licence", "where")
        )
        rows = "".join(self._row(model) for model in self._services.library.models())
        return f'<div class="st-table"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'

    def _row(self, model: Model) -> str:
        kind = f" ({model.kind})" if model.kind else ""
        family = FAMILIES[model.family].title + kind if model.family else ""
        where = "" if self._services.public else str(model.path)
        cells = [model.title, family, readable(model.bytes) if model.bytes else "", model.dtype, model.licence, where]
        line = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells)
        told = "" if self._services.public else model.problem  # may say where files lie
        problem = f'<tr><td colspan="6" class="st-bad">{html.escape(told)}</td></tr>' if told else ""
        return f"<tr>{line}</tr>{problem}"

    def _model(self, model_id: str) -> Model | None:
        return next((model for model in self._services.library.models() if model.id == model_id), None)

    def inspect(self, model_id: str | None) -> list[Any]:
        """Show what is known about a model, and whether it can be removed."""
        model = self._model(model_id) if model_id else None
        hidden = [gr.update(visible=False)] * 2
        if model is None:
            return ["", gr.update(visible=True, interactive=False), *hidden]
        facts: dict[str, Any] = {
            "Problem": TEXT["models.unusable"] if model.problem and self._services.public else model.problem,
            "Kind of file": TEXT["models.file" if model.single else "models.folder"],
        }
        if not model.problem:
            values = ", ".join(f"{name} {value}" for name, value in model.defaults.items())
            told = (
                f"{model.prediction} ({TEXT['models.told'].format(by=model.told_by)})"
                if model.prediction
                else model.noise
            )
            facts |= {"Prediction": told, "Starts with": values, "sha256": self._services.library.sha256(model)}
            facts |= {"Licence": model.licence, "Trigger words": ", ".join(model.trigger_words)}
            facts |= {"Takes from another model": ", ".join(model.lacks)}
        facts |= {name.capitalize(): value for name, value in model.about.items() if name in ("source", "revision")}
        rows = "".join(
            f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>" for name, value in facts.items() if value
        )
        problem = removal_problem(model, self._root, self._services.dispatcher.jobs)
        note = f'<div class="st-quiet">{html.escape(problem)}</div>' if problem and not self._services.public else ""
        return [
            f'<div class="st-table"><table>{rows}</table></div>{note}',
            gr.update(visible=True, interactive=not problem),
            *hidden,
        ]

    @property
    def _root(self) -> Any:
        return self._services.settings.data_dir / "models"

    def remove(self, model_id: str) -> list[Any]:
        """Remove a model from the disk."""
        model = self._model(model_id)
        try:
            if model is None:
                raise InvalidRequest("model", f"there is no model {model_id!r} any more")
            remove_model(model, self._root, self._services.dispatcher.jobs)
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error
        hidden = [gr.update(visible=False)] * 2
        return [
            self.table(),
            gr.update(choices=self.names(), value=None),
            "",
            gr.update(visible=True, interactive=False),
            *hidden,
        ]

    def choose(self, place: int | None) -> list[Any]:
        """Fill in one of the recommended models."""
        if place is None:
            return [gr.skip()] * 5
        one = RECOMMENDED[place]
        gate = (
            TEXT["download.gated"].format(page=f"https://huggingface.co/{one.source}")
            if one.gated
            else TEXT["download.open"]
        )
        free = readable(shutil.disk_usage(self._services.settings.data_dir).free)
        line = TEXT["download.about"].format(note=one.note, licence=one.licence, size=one.size, free=free, gate=gate)
        return [one.source, "", one.file, line, gr.update(interactive=True)]

    def look(self, source: str, revision: str, file: str) -> list[Any]:
        """Ask how large a download would be."""
        try:
            plan = self._services.downloads.plan(parse_source(source, revision, file))
        except StudioError as error:
            return [f'<div class="st-bad">{html.escape(str(error))}</div>', gr.update(interactive=False)]
        fits = plan["free"] > plan["bytes"]
        line = TEXT["download.plan"].format(
            name=plan["name"], size=readable(plan["bytes"]), files=plan["files"], free=readable(plan["free"]),
            licence=plan["licence"] or "?", revision=str(plan["revision"])[:12],
        )  # fmt: skip
        if plan["there"] or not fits:
            line += " " + TEXT["download.there" if plan["there"] else "download.full"]
        return [html.escape(line), gr.update(interactive=fits and not plan["there"])]

    def start(self, source: str, revision: str, file: str) -> list[Any]:
        """Begin a download."""
        try:
            self._services.downloads.start(parse_source(source, revision, file))
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return self.shown()

    def _acting(self, action: str) -> Any:
        def act(name: str | None) -> list[Any]:
            try:
                if not name:
                    raise InvalidRequest("download", TEXT["download.none"])
                getattr(self._services.downloads, action)(name)
            except StudioError as error:
                raise gr.Error(str(error), print_exception=False) from error
            return self.shown()

        return act

    def running_names(self) -> list[tuple[str, str]]:
        """Return the choices of downloads."""
        return [(state["title"], state["id"]) for state in self._services.downloads.state()]

    def shown(self) -> list[Any]:
        """Return the downloads, and the list of models, as they are now; the page asks again while something runs."""
        states = self._services.downloads.state()
        active = any(state["state"] == RUNNING for state in states)
        names = self.running_names()
        which = gr.update(choices=names, value=names[-1][1]) if len(names) == 1 else gr.update(choices=names)
        fresh = [self.table(), gr.update(choices=self.names())]
        return [self.bars(), which, gr.update(visible=bool(names)), gr.Timer(POLL, active=active), *fresh]

    def bars(self) -> str:
        """Return the downloads as HTML."""
        return "".join(map(bar, self._services.downloads.state()))


def bar(state: dict[str, Any]) -> str:
    """Return one download as HTML: what, how far, and what went wrong."""
    part = 100 * state["bytes"] / state["total"] if state["total"] else 0
    sizes = f"{readable(state['bytes'])} / {readable(state['total'])}" if state["total"] else ""
    word = TEXT["download." + state["state"]]
    line = f"{state['title']} · {word} {state['what']} {sizes}"
    told = html.escape(state["error"])
    error = f'<div class="st-bad">{told}</div>' if told else ""
    track = f'<div class="st-track"><div class="st-fill" style="width:{part:.1f}%"></div></div>'
    shown = "" if state["state"] == DONE else track
    return f'<div class="st-download"><div>{html.escape(line)}</div>{shown}{error}</div>'
