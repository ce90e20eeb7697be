"""Choose a chain of post-processing steps, the best that scores higher than none and makes no class worse."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lib.choose.choice import Chain, Choice, Chosen
from lib.choose.evidence import OutOfFold, OutOfFoldScene
from lib.competitions.contract import Competition
from lib.ensemble.search import accept

Steps = Sequence[Mapping[str, Any]]


def choose_postprocessing(scenes: OutOfFold, chosen: Chosen) -> Chosen:
    """Try the chains of ``search.postprocess`` on the choice, and on each choice without a fold on the other folds."""
    competition = scenes.competition
    chains: list[Steps] = [(), *scenes.search.postprocess]
    sums = scenes.added("post-processing", tally_chains, chosen.every(), chains)
    counts = {left_out: [sums[left_out, c] for c in range(len(chains))] for left_out in chosen.every()}
    settled = {k: _with_chain(own, chains[_best(competition, counts[k])]) for k, own in chosen.every().items()}
    tried = [
        Chain([dict(step) for step in chain], float(competition.score(tally)), _accepted(competition, counts[None], c))
        for c, (chain, tally) in enumerate(zip(chains, counts[None], strict=True))
    ]
    return chosen.settle(settled, {"postprocess_tried": tried})


def tally_chains(
    item: OutOfFoldScene, every: Mapping[int | None, Choice], chains: Sequence[Steps]
) -> dict[tuple[int | None, int], np.ndarray]:
    """Tally one scene with each chain after each choice that was made with its fold, by left-out fold and chain.

    The score is among them, whichever chain is taken: so the scene is tallied with the choice made without its fold
    too, and the details of the choice made on all folds are taken, in the same pass.
    """
    tables = {}
    for left_out, own in every.items():
        for c, chain in enumerate(chains):
            choice = _with_chain(own, chain)
            tally = item.tally(choice)
            if item.fold != left_out:
                tables[left_out, c] = tally
            if left_out is None:
                item.detail(choice)
    return tables


def _with_chain(choice: Choice, chain: Steps) -> Choice:
    return choice.change(postprocess=[dict(step) for step in chain])


def _accepted(competition: Competition, counts: Sequence[np.ndarray], chain: int) -> bool:
    """Tell whether a chain scores higher than none, the first, and no class pays for it."""
    return chain > 0 and accept(counts[0], counts[chain], competition.score, competition.class_scores)


def _best(competition: Competition, counts: Sequence[np.ndarray]) -> int:
    """Return the accepted chain with the highest score, 0 (no post-processing) where none is accepted."""
    accepted = [c for c in range(len(counts)) if _accepted(competition, counts, c)]
    return max(accepted, key=lambda c: float(competition.score(counts[c])), default=0)
