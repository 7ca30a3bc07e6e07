"""Panel 8: candidates of one prompt, the best first, as DALL-E chose its pictures (Ramesh et al. 2021, arXiv:2102.12092, 2.6)."""

from studio.engine.lab_bench import Bench
from studio.engine.lab_interpolation import agreement, drawn_from, saying
from studio.errors import ModelError
from studio.lab import Film, Findings, Frame, Line, Plot, Table, axis, finite
from studio.lab_latents import RankingRequest

NO_SCORER = (
    "there is nothing here that could hold these pictures against a prompt; put a CLIP (a folder with config.json and .safetensors) "
    "into models/scorers of the data folder, or use the demo model"
)
SILENT = "prompt={prompt!r} says nothing that could be looked for; name a shape and a colour"


def run_ranking(bench: Bench, request: RankingRequest) -> Findings:
    """Draw the candidates, score them, sort them; of equals the lower seed is first."""
    if bench.scorer is None:
        raise ModelError(NO_SCORER)
    bench.plan(request.candidates * request.steps)
    scale = (bench.request.guidance_scale or 1.0) if bench.predictor.guides else 1.0
    ask = saying(bench.predictor, scale)
    seeds = range(request.seed, request.seed + request.candidates)
    drawn = (drawn_from(bench, bench.noise(seed), ask, seed, request.steps) for seed in seeds)
    pictures = bench.collect(drawn, request.candidates)
    scores = [score for score in agreement(bench, pictures, request.prompt) if score is not None]
    if len(scores) < len(pictures):
        raise ModelError(SILENT.format(prompt=request.prompt))
    order = sorted(range(len(pictures)), key=lambda place: -scores[place])
    ranked = [(rank, seeds[place], *finite([scores[place]], 4)) for rank, place in enumerate(order, 1)]
    shown = {f"{rank}. {score:g} (seed {seed})": seed - request.seed for rank, seed, score in ranked}
    names = {
        title: bench.keep(f"rank-{rank:02d}", pictures[place]) for rank, (title, place) in enumerate(shown.items(), 1)
    }
    mean = sum(scores) / len(scores)
    best = [max(scores[:number]) for number in range(1, len(scores) + 1)]
    counts = axis(range(1, len(scores) + 1))
    lines = (
        Line(name="best_so_far", x=counts, y=finite(best, 4)),
        Line(name="mean_of_all", x=counts, y=finite([mean] * len(scores), 4)),
    )
    return Findings(
        panel="ranking",
        settings=request.model_dump(mode="json"),
        plots=(Plot(name="score", x="candidates", y="agreement", lines=lines),),
        tables=(Table(name="ranking", columns=("rank", "seed", "agreement"), rows=tuple(ranked)),),
        films=(Film(name="ranking", frames=(Frame(caption="", pictures=names),)),),
        taken={"seed": ranked[0][1]},
        notes=(f"The score is that of {bench.scorer.title}.",),
    )
