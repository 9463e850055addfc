"""The recipe as data: what was asked for, checked as far as that goes without a checkpoint.

It is JSON: streammerge.json holds it, and `verify --recompute` reads it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Literal, Self, cast

from pydantic import Field, model_validator

from streammerge.errors import RecipeError
from streammerge.methods import METHODS
from streammerge.methods.fusionbench import NOTES
from streammerge.methods.weights import exact_weights
from streammerge.plugins import UnknownNameError
from streammerge.recipe.entries import Action, ModelEntry, ModuleEntry, Rule, SliceEntry
from streammerge.recipe.places import Placed
from streammerge.recipe.sections import Section, lay_out, merged_models
from streammerge.recipe.settings import Many, Settings
from streammerge.recipe.treatment import WITHOUT_EFFECT, Treatments
from streammerge.schedules import coefficients
from streammerge.tensors import FLOAT_CODES
from streammerge.tokenizers.wish import TokenizerWish

DtypeName = Literal["float64", "float32", "float16", "bfloat16"]
OutDtype = Literal["auto", "float64", "float32", "float16", "bfloat16"]
_EXACT = 2**53
_AVERAGE_OPTIONS = {"models", "schedule", "out_dtype", "skip", "keep", "rows", "side_files_from"}


class Recipe(Placed):
    """One merge.

    Attributes:
        method: name or alias of the method, as written.
        models: the models, in order; with slices or modules an entry for each position
            (`sections`), which is filled in.
        base_model: what task vectors are taken from.
        parameters: settings for all models.
        slices, modules: models put together from parts of others.
        layers: globs such as "model.layers.*" that say which numbers in names are layers.
        before_layers: globs of tensors outside layers that go with the first slice; others go with
            the last.
        rules: other treatment for single tensors; the first that fits counts.
        schedule: coefficients for training checkpoints, oldest first, such as "ema:0.2".
        recipes: recipes that stand in for models, by what is written in place of the reference.
        dtype, out_dtype: of merged tensors; the latter counts where both are given, as in mergekit,
            and without either each tensor keeps the first model's. Inputs are not rounded.
        compute_dtype: "float64" to compute in nothing narrower.
        skip: globs of tensor names to leave out.
        keep: globs of tensor names to take from the first input that has them.
        rows: how many rows tensors with a row for each token get, where models differ in that:
            those that all have, all, or the base's (the first model's); None to refuse.
        side_files_from: the model whose config and tokenizer are taken; None for the base model,
            or the first where there is none.
        plugins: Python files that register the methods used here; they are run.
        seed: of methods that draw random numbers.
        tokenizer: the output's, and embeddings of single tokens; None for that of the config.
        chat_template: "auto", the name of a known one, or Jinja; None for the tokenizer's own.
    """

    method: str = "average"
    models: Many[ModelEntry] = ()
    base_model: str | None = None
    parameters: Settings = Field(default_factory=dict)
    slices: Many[SliceEntry] = ()
    modules: dict[str, ModuleEntry] = Field(default_factory=dict)
    layers: Many[str] = ()
    before_layers: Many[str] | None = None
    rules: Many[Rule] = ()
    schedule: str | None = None
    recipes: dict[str, Recipe] = Field(default_factory=dict)
    dtype: DtypeName | None = None
    out_dtype: OutDtype = "auto"
    compute_dtype: Literal["auto", "float64"] = "auto"
    skip: Many[str] = ()
    keep: Many[str] = ()
    rows: Literal["min", "max", "base"] | None = None
    side_files_from: str | None = None
    plugins: Many[str] = ()
    seed: int = Field(default=0, ge=0, lt=2**64)
    tokenizer: TokenizerWish | None = None
    chat_template: str | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.slices and self.modules:
            raise ValueError("slices and modules do not go together")
        positions = merged_models(self.sections)
        if positions and not self.models:
            object.__setattr__(self, "models", positions)
        if not self.models or (positions and positions != self.models):
            raise ValueError("a recipe has either models, slices or modules")
        if self.rows is not None and self.tokenizer is not None:
            raise ValueError("rows and a tokenizer do not go together: the latter says which rows")
        if any(rule.weights and len(rule.weights) != len(self.models) for rule in self.rules):
            raise ValueError("a rule's weights are one for each model")
        if any(rule.model and rule.model not in self.inputs for rule in self.rules):
            raise ValueError("a rule keeps tensors of a model that is none of the inputs")
        if any(not pattern.endswith(".*") for pattern in self.layers):
            raise ValueError('layers are globs that end with ".*" where the number is')
        if self.schedule is not None:
            self._check_schedule()
        return self

    def _check_schedule(self) -> None:
        try:
            coefficients(self.schedule or "", len(self.models))
        except RecipeError as error:
            raise ValueError(error.message) from error
        weighted = any("weight" in model.parameters for model in self.models)
        if not self._is_average or self.sections:
            raise ValueError("a schedule is for averages of whole models")
        if weighted or not {"weight", "normalize"}.isdisjoint(self.parameters):
            raise ValueError("a schedule sets the weights, so `weight` and `normalize` are not set")

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """Slices and modules laid out; none where whole models are merged."""
        return lay_out(self.slices, self.modules, self.base_model)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """What to open, in order: the models, then the base model if it is not among them."""
        models = tuple(entry.model for entry in self.models)
        alone = self.base_model is None or self.base_model in models or self.sections
        return models if alone else (*models, str(self.base_model))

    @cached_property
    def opened(self) -> tuple[str, ...]:
        """What is read, once each: with slices, what the inputs are made of."""
        if not self.sections:
            return tuple(dict.fromkeys(self.inputs))
        sources = [s.model for section in self.sections for s in section.sources if s]
        donor = self.side_files_from or self.base_model or sources[0]
        return tuple(dict.fromkeys([*sources, donor]))

    @property
    def references(self) -> tuple[str, ...]:
        """Every checkpoint that is read, once, those of recipes in a model's place included."""
        inner = {name: recipe.references for name, recipe in self.recipes.items()}
        return tuple(dict.fromkeys(r for name in self.opened for r in inner.get(name, (name,))))

    @property
    def all_plugins(self) -> tuple[str, ...]:
        """Every file to be run before the merge is planned, those of recipes inside included."""
        inner = [file for recipe in self.recipes.values() for file in recipe.all_plugins]
        return tuple(dict.fromkeys([*self.plugins, *inner]))

    @property
    def base(self) -> int | None:
        """Index of the base model in `inputs`."""
        if self.sections:
            return self.sections[0].base if len({s.base for s in self.sections}) == 1 else None
        return self.inputs.index(self.base_model) if self.base_model is not None else None

    @property
    def donor(self) -> str:
        """The reference whose config, tokenizer and so on are copied."""
        return self.side_files_from or self.base_model or self.opened[0]

    @property
    def dtype_code(self) -> str | None:
        """The safetensors code of the output's dtype; None to keep the first model's."""
        chosen = self.dtype if self.out_dtype == "auto" else self.out_dtype
        return FLOAT_CODES[chosen] if chosen else None

    @property
    def notes(self) -> list[str]:
        """What the user should know about the recipe itself."""
        idle = sorted(WITHOUT_EFFECT & self.parameters.keys())
        near = [f"{name} {NOTES[name]}" for name in self.methods if name in NOTES]
        return [f"{key} changes nothing here: masks are never stored" for key in idle] + near

    @property
    def methods(self) -> list[str]:
        """The methods that are asked for, as they are written."""
        return [self.method, *(rule.method for rule in self.rules if rule.method is not None)]

    def changed(self, **fields: Any) -> Recipe:
        """Return the recipe with other values in some fields.

        Raises:
            RecipeError: they make no sense.
        """
        said = {name: getattr(self, name) for name in self.model_fields_set}
        if self.sections:
            said.pop("models", None)  # filled in again
        return Recipe.build(**{**said, **fields}).read_from(self._file, self._lines, self._text)

    def action(self, name: str) -> tuple[Action, Rule | None]:
        """Return what happens to a tensor, and the rule that says more about it."""
        for action, globs in (("skip", self.skip), ("keep", self.keep)):
            if any(fnmatchcase(name, glob) for glob in globs):
                return cast(Action, action), None
        rule = next((rule for rule in self.rules if rule.applies(name)), None)
        return (rule.action, rule) if rule else ("merge", None)

    def module_of(self, name: str) -> str | None:
        """Return the key of the module that holds a tensor; None where none does.

        The module `default` holds what no other one does.
        """
        keys = dict.fromkeys(section.module for section in self.sections)
        if not self.modules:
            return next(iter(keys), None)
        return next((key for key in keys if self.modules[key].holds(key, name)), None)

    def treatments(self, names: Iterable[str]) -> Treatments:
        """Return the treatment of each tensor, by name.

        Args:
            names: all tensors of all inputs; gradients need to know how many layers there are.
        """
        return Treatments(self, names)

    def schedule_weights(self) -> tuple[int | float, ...]:
        """Return the schedule's weight of each model, as integers where those are exact."""
        if self.schedule is None:
            return ()
        shares = coefficients(self.schedule, len(self.models))
        integers = exact_weights(shares).integers
        exact = max(map(abs, integers)) <= _EXACT
        return integers if exact else tuple(float(share) for share in shares)

    def place_of_method(self, name: str) -> str:
        """Return where a method is asked for: in a rule, or for all tensors."""
        for number, rule in enumerate(self.rules):
            if rule.method == name:
                return self.place(("rules", number, "method"))
        return self.place(("merge_method",))

    @property
    def _is_average(self) -> bool:
        try:
            return METHODS.get(self.method).name == "average"
        except UnknownNameError:
            return False

    def command(self, out: str) -> list[str]:
        """Return the command line that asks for the same."""
        said = self.model_dump(exclude_defaults=True)
        weights = [entry.parameters.get("weight") for entry in self.models]
        own = sum(len(entry.parameters) for entry in self.models)
        plain = said.keys() <= _AVERAGE_OPTIONS and own == sum(w is not None for w in weights)
        if self.file or not plain:
            return ["streammerge", "merge", self.file or "recipe.yml", "-o", out]
        words = ["streammerge", "average", *self.inputs, "-o", out]
        words += [word for w in weights if w is not None for word in ("-w", str(w))]
        words += ["--schedule", self.schedule] if self.schedule is not None else []
        words += ["--dtype", self.out_dtype] if self.out_dtype != "auto" else []
        words += [word for glob in self.skip for word in ("--skip", glob)]
        words += [word for glob in self.keep for word in ("--keep", glob)]
        words += ["--rows", self.rows] if self.rows is not None else []
        chosen = self.side_files_from
        return words + (["--side-files-from", chosen] if chosen is not None else [])
