"""recipe + headers → Plan, without reading tensor data and without torch.

Everything that can be refused is refused here, before a byte of the output exists.
"""

from __future__ import annotations

from collections.abc import Sequence

from streammerge.checkpoint import Checkpoint, as_read
from streammerge.configs import compare_configs
from streammerge.coverage import Decision, cover
from streammerge.errors import ParameterError, RecipeError
from streammerge.extensions import find_method
from streammerge.methods import METHODS, Method
from streammerge.methods.fusionbench import translate
from streammerge.methods.parameters import Resolved, resolve
from streammerge.methods.weights import exact_weights
from streammerge.plan import (
    ARITHMETIC,
    InputFile,
    OutputTensor,
    Plan,
    PlanInput,
    Step,
)
from streammerge.recipe import Recipe, Treatment
from streammerge.recipe.treatment import all_settings
from streammerge.sharding import split
from streammerge.version import __version__


def make_plan(
    recipe: Recipe, checkpoints: Sequence[Checkpoint], max_shard_size: int | None
) -> Plan:
    """Return the plan of a merge.

    Args:
        recipe: what was asked for.
        checkpoints: its models, opened, in the same order.
        max_shard_size: of the output; see `sharding.split`.

    Raises:
        CoverageError: the inputs do not match each other.
        RecipeError: a part of the recipe that does not fit the inputs.
    """
    names = dict.fromkeys(name for c in checkpoints for name in c.tensors)
    treatments = recipe.treatments(names)
    coverage = cover(checkpoints, recipe, treatments)
    steps: dict[Step, int] = {}
    tensors = []
    for decision in coverage.decisions:
        step = _step(decision, recipe, treatments[decision.tensor.name], checkpoints)
        number = steps.setdefault(step, len(steps))
        info = decision.tensor
        tensors.append(
            OutputTensor(name=info.name, dtype=info.dtype, shape=info.shape, step=number)
        )
    donor = _donor(recipe)
    notes = [*recipe.notes, *(note for c in checkpoints for note in c.notes), *coverage.notes]
    return Plan(
        streammerge=__version__,
        arithmetic=ARITHMETIC,
        recipe=recipe,
        inputs=tuple(_inputs(checkpoints, list(steps))),
        steps=tuple(steps),
        shards=split(tensors, max_shard_size),
        side_files_from=donor,
        notes=(*notes, *compare_configs(checkpoints, donor)),
    )


def _step(
    decision: Decision, recipe: Recipe, treatment: Treatment, checkpoints: Sequence[Checkpoint]
) -> Step:
    name = decision.tensor.name
    if decision.action != "merge":
        if any(
            as_read(checkpoints[i], name).dtype != decision.tensor.dtype for i in decision.sources
        ):
            return _rounded_copy(decision.sources[0])
        return Step(action=decision.action, sources=decision.sources)
    method = _method(treatment.method, recipe)
    base = _base(method, treatment)
    models = [i for i in decision.sources if i != base and i in treatment.models]
    _check_count(method, len(models))
    settings = treatment.parameters
    if "seed" in method.parameters:
        settings = {"seed": recipe.seed, **settings}
    try:
        parameters = resolve(
            method.name,
            method.parameters,
            *translate(
                treatment.method,
                settings,
                [treatment.each[i] for i in models],
                all_settings(recipe),
            ),
        )
    except ParameterError as error:
        raise _placed(error, recipe, models) from error
    method.check(dict(parameters))
    if method.drops_zero:
        models, parameters = _without_zeros(models, parameters)
    sources = (*models, base) if base is not None else tuple(models)
    dtypes = {as_read(checkpoints[i], name).dtype for i in sources} | {decision.tensor.dtype}
    granularity = method.granularity(dict(parameters), decision.tensor.shape)
    halves = dtypes in ({"BF16"}, {"F16"})
    wide = granularity != "element" or not (method.kernel or halves)
    return Step(
        action="merge",
        sources=sources,
        has_base=base is not None,
        method=method.name,
        parameters=parameters,
        compute="F64" if wide or recipe.compute_dtype == "float64" else "F32",
        granularity=granularity,
        passes=method.passes_for(dict(parameters)),
    )


def _rounded_copy(source: int) -> Step:
    """Return the step for a copy of what a view computes: an average of one, rounded."""
    average = METHODS.get("average")
    parameters = resolve(average.name, average.parameters, {}, [{}])
    return Step(action="merge", sources=(source,), method=average.name, parameters=parameters)


def _placed(error: ParameterError, recipe: Recipe, models: Sequence[int]) -> RecipeError:
    """Return the error with file and line of what is wrong, where the recipe has such."""
    if not recipe.file:
        return error
    place = recipe.place_of(error.key, None if error.model is None else models[error.model])
    return RecipeError(f"{place}: {error.message}", error.remedy)


def _method(name: str, recipe: Recipe) -> Method:
    try:
        return find_method(name)
    except RecipeError as error:
        where = f"{recipe.place_of_method(name)}: " if recipe.file else ""
        raise RecipeError(where + error.message, error.remedy) from None


def _base(method: Method, treatment: Treatment) -> int | None:
    if method.base == "none":
        return None
    if method.base == "required" and treatment.base is None:
        raise RecipeError(
            f"{method.name} works on differences to a base model, and the recipe names none",
            "Add `base_model: …`.",
        )
    return treatment.base


def _check_count(method: Method, count: int) -> None:
    least, most = method.models
    if count < least or (most is not None and count > most):
        wanted = f"{least} or more" if most is None else f"{least} to {most}"
        wanted = f"{least}" if least == most else wanted
        noun = "model" if wanted == "1" else "models"
        beside = " besides the base model" if method.base != "none" else ""
        raise RecipeError(f"{method.name} takes {wanted} {noun}{beside}, not {count}")


def _without_zeros(models: list[int], parameters: Resolved) -> tuple[list[int], Resolved]:
    """Leave out the models of weight 0: they contribute nothing and need not be read."""
    weights = dict(parameters)["weight"]
    assert isinstance(weights, tuple)
    kept = [n for n, weight in enumerate(weights) if weight != 0]
    chosen = tuple(
        (name, tuple(value[n] for n in kept) if isinstance(value, tuple) else value)
        for name, value in parameters
    )
    return [models[n] for n in kept], chosen


def _inputs(checkpoints: Sequence[Checkpoint], steps: Sequence[Step]) -> list[PlanInput]:
    shares = _coefficients(steps, len(checkpoints))
    inputs = []
    for checkpoint, share in zip(checkpoints, shares, strict=True):
        files = tuple(
            InputFile(name=name, size=identity.size, version=identity.version, header_sha256=digest)
            for name, (identity, digest) in sorted(checkpoint.identity().items())
        )
        pinned = checkpoint.pinned
        inputs.append(
            PlanInput(label=checkpoint.label, pinned=pinned, coefficient=share, files=files)
        )
    return inputs


def _coefficients(steps: Sequence[Step], count: int) -> list[float | None]:
    """Return the share of each model, where all that is merged is one and the same average."""
    merges = {(s.method, s.sources, s.parameters) for s in steps if s.action == "merge"}
    method, sources, parameters = next(iter(merges), ("", (), ()))
    if len(merges) != 1 or method != "average":
        return [None] * count
    settings = dict(parameters)
    weights = exact_weights(settings["weight"], settings["normalize"])  # type: ignore[arg-type]
    shares = dict(zip(sources, weights.coefficients, strict=True))
    return [shares.get(i, 0.0) for i in range(count)]


def _donor(recipe: Recipe) -> int:
    if recipe.sections:
        return 0  # every input shows the donor's
    if recipe.donor in recipe.inputs:
        return recipe.inputs.index(recipe.donor)
    raise RecipeError(
        f"--side-files-from {recipe.side_files_from!r} is none of the models",
        f"Give one of: {', '.join(recipe.inputs)}.",
    )
