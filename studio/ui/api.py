"""The public endpoints: for gradio_client, plain HTTP and MCP. Everything else that Gradio serves is the page's own plumbing."""

import asyncio
import base64
import functools
import inspect
import time
from typing import Any

import gradio as gr
from starlette.concurrency import run_in_threadpool

from studio.errors import InvalidRequest, StudioError
from studio.preprocessors import PREPROCESSORS, missing_message, option_values
from studio.records import Job
from studio.schedulers import SCHEDULERS, Sigmas
from studio.spec import GenerationRequest, parse_request
from studio.store.blobs import is_reference
from studio.store.embeddings import embedding_rows
from studio.store.index import Filter
from studio.store.jobs import CANCELLED, DONE, FAILED
from studio.store.lora_facts import lora_rows
from studio.tools import PreprocessCall, VaeCheckCall
from studio.ui.datasets_api import DatasetsApi
from studio.ui.given import joined, with_each_picture
from studio.ui.lab_api import LabApi
from studio.ui.merge_panel import MergeApi
from studio.ui.models_api import ModelsApi
from studio.ui.prompt_api import PromptApi
from studio.ui.services import Services
from studio.ui.training_api import TrainingApi
from studio.ui.upscale_panel import enlarging

WAIT = 600.0  # seconds that `txt2img` waits for its pictures
POLL = 0.03


class Api:
    """The endpoints over the page's services."""

    def __init__(self, services: Services) -> None:
        self._services, self._prompts = services, PromptApi(services)

    def register(self) -> None:
        """Add all endpoints to the Blocks that is being built."""
        models = ModelsApi(self._services)
        # What strangers may not do is not there for them: a hidden or private endpoint of Gradio can be called.
        home = (
            ()
            if self._services.public
            else (
                models.download,
                models.downloads,
                MergeApi(self._services).merge,
                DatasetsApi(self._services).datasets,
                *TrainingApi(self._services).endpoints,
                *LabApi(self._services, self._picture).endpoints,
            )
        )
        for function in (
            self.txt2img,
            self.img2img,
            self.inpaint,
            self.preprocess,
            self.preprocessors,
            self.vae_check,
            self.upscale,
            models.models,
            self.adapters,
            self.schedulers,
            self.gallery,
            self.job,
            self.cancel,
            *self._prompts.endpoints,
            *home,
        ):
            gr.api(answering(function), api_name=function.__name__, concurrency_limit=None, queue=False)  # pyright: ignore[reportPrivateImportUsage]

    async def txt2img(  # noqa: PLR0913 - an endpoint is flat; a test compares it with GenerationRequest
        self,
        prompt: str,
        negative_prompt: str = "",
        model: str = "shapes",
        width: int | None = None,
        height: int | None = None,
        num_images_per_prompt: int = 1,
        batch_size: int = 1,
        scheduler: str | None = None,
        sigmas: Sigmas | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        seed: int = -1,
        variation_seed: int = -1,
        variation_strength: float = 0.0,
        hires_scale: float = 1.0,
        hires_upscaler: str = "latent",
        hires_steps: int = 0,
        hires_strength: float = 0.7,
        eta: float = 0.0,
        clip_skip: int = 0,
        loras: list[dict[str, Any]] | None = None,
        styles: list[str] | None = None,
        settings: dict[str, Any] | None = None,
        wait: bool = True,
        request: gr.Request = None,  # pyright: ignore[reportArgumentType]
    ) -> dict[str, Any]:
        """Draw pictures from a prompt.

        Args:
            prompt: what to draw; `{a|b}` and `__wildcard__` are chosen for each picture (group of `batch_size`) by its seed.
            negative_prompt: what to avoid.
            model: id of a model, see `models`.
            width: in pixels, a multiple of 8; the model's own if not given.
            height: in pixels, a multiple of 8; the model's own if not given.
            num_images_per_prompt: how many pictures, 1 to 64; picture i uses seed + i.
            batch_size: pictures made at once, 1 to 8.
            scheduler: sampling method, see `schedulers`; the model's own if not given.
            sigmas: how noise levels are spaced.
            num_inference_steps: 1 to 150; the model's own if not given.
            guidance_scale: CFG, 1 to 30; the model's own if not given.
            guidance_rescale: takes back washed-out colours of strong guidance, 0 to 1.
            guidance_start: part of the steps before guidance begins.
            guidance_end: part of the steps at which guidance ends.
            seed: the same seed makes the same picture; -1 is random.
            variation_seed: noise to mix in; -1 is random.
            variation_strength: how much of it, 0 to 1.
            hires_scale: size of a second pass, 1 (none) to 4 times.
            hires_upscaler: how the first pass is enlarged: `latent`, `lanczos` or the name of an upscaler model.
            hires_steps: of the second pass; 0 is as many as the first.
            hires_strength: how much the second pass may change.
            eta: noise added at each step by DDIM and TCD, 0 to 1.
            clip_skip: layers of the text encoder left out.
            loras: LoRA to apply, see `adapters`: [{"name": …, "weight": 1.0, "text_encoder_weight": …, "blocks": […]}].
            styles: names of styles to put around the prompts, see `styles`.
            settings: what few need: `controls`, `t2i_adapters`, `ip_adapters` (lists of units; their pictures as base64 or `blob:…`),
                `pag_scale`, `true_cfg_scale`, `prior_guidance_scale`, `refiner`, `refiner_start`, `vae` (name of a VAE, `own` for the
                model's), `vae_tiling`, `vae_slicing`, `weights` (`full`, `float8`, `int8`, `nf4`), `attention` (`math`, `flash` …).
            wait: return when the pictures are made, at the latest after ten minutes; if false, at once: ask `job` then.

        Returns:
            The job as `job` describes it.
        """
        values = {name: value for name, value in locals().items() if name in GenerationRequest.model_fields}
        values |= {"loras": loras or (), "styles": styles or ()}
        return await self._draw(joined(values, settings), wait, request)

    async def img2img(
        self,
        image: str,
        prompt: str,
        strength: float = 0.75,
        settings: dict[str, Any] | None = None,
        wait: bool = True,
        request: gr.Request = None,  # pyright: ignore[reportArgumentType]
    ) -> dict[str, Any]:
        """Draw pictures that start from a picture.

        Args:
            image: a picture file as base64, or a reference `blob:…`.
            prompt: what to draw.
            strength: how much may change, 0 (nothing) to 1 (everything).
            settings: any other field of a request, as in `txt2img` or a request file.
            wait: see `txt2img`.

        Returns:
            The job as `job` describes it.
        """
        given = {"image": image, "prompt": prompt, "strength": strength}
        return await self._draw(joined(given, settings), wait, request)

    async def inpaint(
        self,
        image: str,
        mask_image: str,
        prompt: str,
        strength: float = 0.75,
        settings: dict[str, Any] | None = None,
        wait: bool = True,
        request: gr.Request = None,  # pyright: ignore[reportArgumentType]
    ) -> dict[str, Any]:
        """Draw a part of a picture anew; everything else stays as it is, at the size that is drawn.

        Args:
            image: a picture file as base64, or a reference `blob:…`.
            mask_image: likewise, of the same size: white is drawn anew.
            prompt: what to draw.
            strength: how much may change under the mask, 0 (nothing) to 1 (everything).
            settings: any other field of a request, such as `mask_blur`, `only_masked`, `masked_content`.
            wait: see `txt2img`.

        Returns:
            The job as `job` describes it.
        """
        given = {"image": image, "mask_image": mask_image, "prompt": prompt, "strength": strength}
        return await self._draw(joined(given, settings), wait, request)

    async def upscale(
        self,
        image: str,
        scale: float = 2.0,
        upscaler: str = "lanczos",
        wait: bool = True,
        request: gr.Request = None,  # pyright: ignore[reportArgumentType]
    ) -> dict[str, Any]:
        """Enlarge a finished picture; nothing is drawn anew.

        Args:
            image: a picture file as base64, or a reference `blob:…`.
            scale: how many times as wide and high, more than 1 to 4; at most 8192 pixels a side and 64 million in all.
            upscaler: `lanczos`, or the name of an upscaler model.
            wait: see `txt2img`.

        Returns:
            The job as `job` describes it.
        """
        return await self._draw(enlarging(image, scale, upscaler), wait, request)

    async def _draw(self, values: dict[str, Any], wait: bool, request: gr.Request | None) -> dict[str, Any]:
        """Submit a request and wait for its pictures if that is wanted."""

        def submit() -> Job:
            parse_request(with_each_picture(values, lambda text, field: "given"))  # before a picture is stored
            wanted = parse_request(with_each_picture(values, self._picture))
            owner = self._services.owner(request.headers if request else {})
            return self._services.dispatcher.submit(wanted, owner)

        made = await run_in_threadpool(submit)
        until = time.monotonic() + WAIT
        while wait and time.monotonic() < until:
            entry = self._services.dispatcher.jobs.get(made.id)
            if entry is None or entry.state in (DONE, FAILED, CANCELLED):
                break
            await asyncio.sleep(POLL)
        answer = self.job(made.id, request)  # pyright: ignore[reportArgumentType]
        if wait and answer["error"]:
            raise StudioError(answer["error"])
        return answer

    def _picture(self, text: object, field: str) -> str:
        """Store a picture that came as text; return its reference. A path is never taken."""
        if isinstance(text, str) and is_reference(text) and not self._services.public:
            return text  # a reference stands in every PNG: who finds one on a public page must not get its picture
        try:
            plain = "".join((str(text).partition("base64,")[2] or str(text)).split())
            data = base64.b64decode(plain, validate=True)
        except ValueError:
            raise InvalidRequest(field, f"{field} must be a picture file as base64, or a reference `blob:…`") from None
        return self._services.gallery.blobs.add(data, field)

    def preprocess(
        self,
        image: str,
        preprocessor: str = "canny",
        resolution: int | None = None,
        options: dict[str, float] | None = None,
    ) -> dict[str, Any]:
        """Make the control picture that a unit would follow.

        Args:
            image: a picture file as base64, or a reference `blob:…`.
            preprocessor: see `preprocessors`.
            resolution: short side in pixels at which it looks; as large as the picture if not given.
            options: its own numbers, such as `low_threshold`.

        Returns:
            {"url"}: where the picture can be fetched until the next start.
        """
        option_values(preprocessor, options or {})
        picture = self._picture(image, "image")
        call = PreprocessCall(image=picture, preprocessor=preprocessor, resolution=resolution, options=options or {})
        answer = self._services.dispatcher.ask(call)
        return {"url": f"/studio/tool/{answer.pictures['map']}"}

    def preprocessors(self) -> list[dict[str, Any]]:
        """List the preprocessors; `ready` says whether the weights that one needs are there, `needs` how to get them."""
        folder = self._services.settings.annotators
        told = {name: missing_message(name, folder) for name in PREPROCESSORS}
        return [
            {
                "name": name,
                "title": p.title,
                "kind": p.kind,
                "ready": not told[name],
                "needs": told[name],
                "note": p.note,
            }
            for name, p in PREPROCESSORS.items()
        ]

    def vae_check(self, image: str, model: str = "shapes", vae: str | None = None) -> dict[str, Any]:
        """Encode a picture and decode it again, to see what an autoencoder keeps.

        Args:
            image: a picture file as base64, or a reference `blob:…`.
            model: whose autoencoder.
            vae: name of a VAE to check in its place; it must fit the model.

        Returns:
            {"psnr" in dB, "worst" of 255 levels, "means" and "deviations" of the latents, "urls" of three pictures, …}.
        """
        library = self._services.library
        reference, part = library.reference(library.get(model)), library.vae_of(model, vae)
        call = VaeCheckCall(image=self._picture(image, "image"), model=reference, vae=part)
        answer = self._services.dispatcher.ask(call)
        return answer.values | {"urls": {name: f"/studio/tool/{key}" for name, key in answer.pictures.items()}}

    def job(self, job: str, request: gr.Request = None) -> dict[str, Any]:  # pyright: ignore[reportArgumentType]
        """Say what became of a job.

        Args:
            job: the id that `txt2img` returned.

        Returns:
            {"job", "state": queued | running | done | failed | cancelled, "images": [{"id", "url"}], "error", "seed",
            "notices": [sentences about its pictures]}.
        """
        entry = self._services.dispatcher.seen_by(job, self._services.limit(request.headers if request else {}))
        images = [{"id": image_id, "url": f"/studio/image/{image_id}"} for image_id in entry.images]
        return {
            "job": job,
            "state": entry.state,
            "images": images,
            "error": entry.error,
            "notices": self._services.dispatcher.notices(job),
            "seed": entry.job.request.seed,
        }

    def cancel(self, job: str, request: gr.Request = None) -> dict[str, Any]:  # pyright: ignore[reportArgumentType]
        """Take a job out of the queue, or interrupt it; finished pictures are kept.

        Args:
            job: the id that `txt2img` returned.
        """
        self._services.dispatcher.cancel(job, self._services.limit(request.headers if request else {}))
        return self.job(job, request)

    def adapters(self) -> list[dict[str, Any]]:
        """List the LoRA and embeddings that can be used: `id` is what `loras` names, `names` call an embedding in a prompt."""
        parts = self._services.library.parts
        rows = lora_rows(parts.parts("lora")) + embedding_rows(parts.parts("embedding"))
        return [{name: value for name, value in row.items() if name != "problem"} for row in rows if not row["problem"]]

    def schedulers(self) -> list[dict[str, Any]]:
        """List the sampling methods and the schedule types that each can follow."""
        return [
            {"name": name, "sigmas": list(s.sigmas), "class": s.class_name, "noise": s.noise}
            for name, s in SCHEDULERS.items()
        ]

    def gallery(
        self,
        words: str = "",
        model: str = "",
        day: str = "",
        starred: bool = False,
        before: int | None = None,
        limit: int = 50,
        request: gr.Request = None,  # pyright: ignore[reportArgumentType]
    ) -> dict[str, Any]:
        """List pictures, newest first.

        Args:
            words: only pictures whose prompt has all these words.
            model: only pictures of this model.
            day: only pictures of this day, such as 2026-11-21.
            starred: only pictures with a star.
            before: only pictures older than this: the `next` of the page before.
            limit: how many, 1 to 200.

        Returns:
            {"images": [{"id", "url", "prompt", "model", "seed", "width", "height"}], "next"}.
        """
        if not 1 <= limit <= 200:
            raise StudioError(f"limit={limit} must be from 1 to 200")
        owner = self._services.limit(request.headers if request else {})
        index, wanted = self._services.gallery.index, Filter(words=words, model=model, day=day, starred=starred)
        rows = index.page(before=before, limit=limit, owner=owner, **wanted)
        keys = ("id", "prompt", "model", "seed", "width", "height")
        images = [{key: row[key] for key in keys} | {"url": f"/studio/image/{row['id']}"} for row in rows]
        return {"images": images, "next": rows[-1]["seq"] if len(rows) == limit else None}


def answering(function: Any) -> Any:
    """Turn a StudioError into gr.Error, whose text reaches the caller; other errors stay hidden from strangers."""

    @functools.wraps(function)
    async def answer(*args: Any, **kwargs: Any) -> Any:
        try:
            if inspect.iscoroutinefunction(function):
                return await function(*args, **kwargs)
            return await run_in_threadpool(function, *args, **kwargs)
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return answer
