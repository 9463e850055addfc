"""How well does a sentence model find the answer to a question? `python -m demo.retrieval MODEL…`

Every question of `pairs.json` is compared with every answer there, by the cosine of mean-pooled
embeddings. Sixteen pairs illustrate; they measure nothing.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

PAIRS = Path(__file__).with_name("pairs.json")


@dataclass(frozen=True)
class Score:
    """How one model did on the pairs."""

    first: int  # questions whose own answer came first
    reciprocal_rank: float  # mean of 1 / rank of the own answer
    margin: float  # mean cosine of the own answer less that of the best other one
    questions: int


def score(model: Path) -> Score:
    """Rank all answers for each question."""
    pairs = json.loads(PAIRS.read_text(encoding="utf-8"))
    questions = embed(model, [pair["question"] for pair in pairs])
    answers = embed(model, [pair["answer"] for pair in pairs])
    cosines = questions @ answers.T
    own = cosines.diagonal()
    ranks = (cosines > own[:, None]).sum(dim=1) + 1
    others = cosines.clone().fill_diagonal_(-torch.inf)
    return Score(
        first=int((ranks == 1).sum()),
        reciprocal_rank=float((1 / ranks).mean()),
        margin=float((own - others.amax(dim=1)).mean()),
        questions=len(pairs),
    )


@torch.inference_mode()
def embed(folder: Path, sentences: list[str]) -> torch.Tensor:
    """One unit vector a sentence: the mean of its tokens' last hidden states."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokens = tokenizer(sentences, padding=True, return_tensors="pt")
    states = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)
    means = (states * mask).sum(dim=1) / mask.sum(dim=1)
    return torch.nn.functional.normalize(means, dim=1)


def loading_problems(folder: Path) -> dict[str, list[str]]:
    """What transformers found missing, unexpected, mismatched or wrong: the empty ones too."""
    _, report = AutoModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    return {kind: sorted(map(str, found)) for kind, found in report.items()}


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(argument, score(Path(argument)))
