"""grade(): how an exercise of the book stands. The truths are in ``exercises.py``, out of the reader's sight; what can
be said of a wrong answer is the list ``HINTS`` here.
"""

import difflib
import itertools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .exercises import EXERCISES, NOTHING, Exercise

#: factors that a slip of the pen makes, and how they are called
FACTORS = {2: "2", 4: "4", 8: "8", 3: "3", 10: "10", 1000: "1000", 2**0.5: "√2", math.pi: "π", 2 * math.pi: "2π"}


class Part(NamedTuple):
    """One part of the answer, as found and as it should be, at each of the arguments that it was tried at."""

    found: list[np.ndarray]
    truth: list[np.ndarray]
    below: float


def grade(label: str, answer: Any) -> None:
    """Tell the reader how the exercise ``label`` stands: not begun, right, or what is wrong with the answer.

    The exercise says what it asks for: a number or an array, a tuple of them, a letter, or a function, which is tried
    on arguments of the grader's own. Raises ValueError where the book has no exercise of that label.

    >>> grade("ex-hyperbolic", None)
    nothing to check yet: put your answer where None stands
    >>> grade("ex-hyperbolic", lambda s: math.exp(2 * s))
    right: relative error below 1e-08
    >>> grade("ex-hyperbolic", lambda s: math.exp(s))
    not yet: yours is the square root of what it should be
    >>> grade("ex-hyperbolic", 403.4)
    not yet: asked for: a function of s; found a number: write it with def or lambda
    """
    print(verdict(label, answer))


def verdict(label: str, answer: Any) -> str:
    """The sentence that ``grade`` prints.

    >>> verdict("ex-kink", (1.0, -1.0))
    'not yet: you have exchanged the parts of your answer'
    """
    if label not in EXERCISES:
        near = difflib.get_close_matches(label, EXERCISES, 1)
        raise ValueError(f"the book has no exercise {label!r}{f': do you mean {near[0]!r}?' if near else ''}")
    exercise = EXERCISES[label]
    if _missing(answer):
        return NOTHING
    wrong = _problem(exercise, answer)
    if wrong in (None, NOTHING):
        return wrong or ("right" if exercise.judge else f"right: relative error below {exercise.below:g}")
    return f"not yet: {wrong}"


def _problem(exercise: Exercise, answer: Any) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if exercise.at is None:
        if callable(answer) and not exercise.judge:
            return f"asked for: {exercise.asks}; found a function: call it, and give what it returns"
        return _judged(exercise, answer, ()) if exercise.judge else _compared(exercise, [()], [answer])
    if not callable(answer):
        return (
            f"asked for: a function of {_listed(exercise.parameters)}; found {_kind(answer)}: "
            "write it with def or lambda"
        )
    arguments, found = exercise.at(), []
    for these in arguments:
        try:
            found.append(answer(*(_given(x) for x in these)))
        except Exception as problem:  # whatever the reader's function raises
            return f"your function {_stopped(problem)}; it was called with {_called_with(exercise, these)}"
        if _missing(found[-1]):
            return NOTHING
    if not exercise.judge:
        return _compared(exercise, arguments, found)
    return next(filter(None, (_judged(exercise, x, these) for x, these in zip(found, arguments))), None)


def _judged(exercise: Exercise, found: Any, arguments: tuple[Any, ...]) -> str | None:
    """The verdict of an exercise that has many right answers."""
    assert exercise.judge is not None
    try:
        return exercise.judge(found, *arguments) or None
    except Exception as problem:  # the answer may be a function that the judge calls
        return f"your answer {_stopped(problem)}; asked for: {exercise.asks}"


def _compared(exercise: Exercise, arguments: list[tuple[Any, ...]], found: list[Any]) -> str | None:
    """What is wrong with answers at some arguments, each of one part or of several; None if nothing is."""
    truths = [exercise.truth(*these) for these in arguments]
    several = isinstance(truths[0], tuple)
    tried: list[list[np.ndarray]] = []
    for answer, truth in zip(found, truths):
        try:
            parts = list(answer) if several else [answer]
        except TypeError:
            parts = [answer]
        if several and len(parts) != len(truth):
            return f"asked for: {exercise.asks}; found {_kind(answer)}, where there should be {len(truth)} parts"
        if any(x is None for x in parts):
            return NOTHING
        try:
            tried.append([_array(x) for x in parts])
        except (TypeError, ValueError):
            return f"asked for: {exercise.asks}; found {_kind(answer)}"
    right = [[_array(x) for x in (truth if several else (truth,))] for truth in truths]
    parts_of = [Part(list(f), list(t), exercise.below) for f, t in zip(zip(*tried), zip(*right))]
    wrong = [k for k, part in enumerate(parts_of) if not _same(part.found, part.truth, exercise.below)]
    if not wrong:
        return None
    whole = [
        _specific(exercise, arguments, tried),
        _exchanged_parts(parts_of),
        _exchanged_arguments(exercise, arguments, tried),
    ]
    if sentence := next(filter(None, whole), None):
        return sentence
    which = f"part {wrong[0] + 1} of {len(parts_of)}: " if several else ""
    return which + _explained(exercise, arguments, parts_of[wrong[0]])


def _explained(exercise: Exercise, arguments: list[tuple[Any, ...]], part: Part) -> str:
    """The first hint that fits, else how far off the answer is and where to begin."""
    if sentence := next(filter(None, (hint(part) for hint in HINTS)), None):
        return sentence
    good = [_same([f], [t], part.below) for f, t in zip(part.found, part.truth)]
    if any(good):
        sides = (
            _called_with(exercise, next(a for a, g in zip(arguments, good) if g is side)) for side in (True, False)
        )
        return "right with {}, but not with {}".format(*sides)
    return f"relative error {max(map(_error, part.found, part.truth)):.2g}; hint: {exercise.hint}"


# --- hints for the answer as a whole


def _specific(exercise: Exercise, arguments: list[tuple[Any, ...]], tried: list[list[np.ndarray]]) -> str | None:
    """A mistake that the exercise itself foresees."""
    for sentence, mistake in exercise.mistakes.items():
        with np.errstate(all="ignore"):  # it may divide by zero where the right one does not
            wrong = [mistake(*these) for these in arguments]
        parts = [[_array(x) for x in (w if isinstance(w, tuple) else (w,))] for w in wrong]
        if all(_same(f, w, _near(exercise.below)) for f, w in zip(tried, parts)):
            return sentence
    return None


def _exchanged_parts(parts: list[Part]) -> str | None:
    for order in itertools.permutations(range(len(parts))):
        pairs = [(parts[k].found, part.truth) for k, part in zip(order, parts)]
        if list(order) != sorted(order) and all(_same(f, t, _near(parts[0].below)) for f, t in pairs):
            return "you have exchanged the parts of your answer"
    return None


def _exchanged_arguments(
    exercise: Exercise, arguments: list[tuple[Any, ...]], tried: list[list[np.ndarray]]
) -> str | None:
    """One symbol written for another of the same shape: u for v, p for q, m for n."""
    pairs = []
    for i, j in itertools.combinations(range(len(exercise.parameters)), 2):
        alike = [k for k, these in enumerate(arguments) if _alike(these[i], these[j])]
        if alike and all(_fits_exchanged(exercise, arguments[k], i, j, tried[k]) for k in alike):
            pairs.append(f"{exercise.parameters[i]} and {exercise.parameters[j]}")
    return f"you have exchanged {', or '.join(pairs)}" if pairs else None


def _fits_exchanged(exercise: Exercise, arguments: tuple[Any, ...], i: int, j: int, tried: list[np.ndarray]) -> bool:
    """Whether the answer is right for the arguments with two of them exchanged."""
    these = list(arguments)
    these[i], these[j] = these[j], these[i]
    try:
        with np.errstate(all="ignore"):  # what is exchanged may be out of range
            truth = exercise.truth(*these)
    except (ValueError, ArithmeticError, IndexError, TypeError):
        return False
    parts = [_array(x) for x in (truth if isinstance(truth, tuple) else (truth,))]
    return _same(tried, parts, _near(exercise.below))


def _alike(x: Any, y: Any) -> bool:
    """Whether two arguments are both numbers, or arrays of one shape."""
    return all(isinstance(a, (numbers.Number, np.ndarray)) for a in (x, y)) and np.shape(x) == np.shape(y)


# --- hints for one part


def _not_a_number(part: Part) -> str | None:
    if any(np.isnan(x).any() for x in part.found):
        return "your answer is NaN, not a number: look for a division of zero by zero or a root of a negative number"
    return (
        "your answer is infinite: look for a division by zero" if any(np.isinf(x).any() for x in part.found) else None
    )


def _transposed(part: Part) -> str | None:
    return _if_all(part, lambda f: np.swapaxes(f, -1, -2) if f.ndim > 1 else None, "you have the transpose of it")


def _wrong_shape(part: Part) -> str | None:
    for found, truth in zip(part.found, part.truth):
        if found.shape != truth.shape:
            expected = f"one of the shape {truth.shape}" if truth.ndim else "a number"
            likely = ""
            if found.ndim == truth.ndim > 0:
                likely = ": a transpose that is missing, u for v, or p for q?"
            return f"your answer has the shape {found.shape}, expected {expected}{likely}"
    return None


def _single_precision(part: Part) -> str | None:
    single = any(f.dtype in (np.float32, np.complex64, np.float16) for f in part.found)
    if single and _same(part.found, part.truth, 1e-3):
        return "right to the digits of single precision only: compute in double, torch.float64"
    return None


def _rounded(part: Part) -> str | None:
    if part.below < 1e-4 and _same(part.found, part.truth, 5e-3):
        worst = f"{max(map(_error, part.found, part.truth)):.1g}"
        return (
            f"close, with a relative error of {worst}: give the expression itself, neither rounded nor an approximation"
        )
    return None


def _wrong_sign(part: Part) -> str | None:
    return _if_all(part, lambda f: -f, "only the sign is wrong")


def _conjugated(part: Part) -> str | None:
    if not any(np.iscomplexobj(t) for t in part.truth):
        return None
    return _if_all(part, np.conj, "you have the complex conjugate of it") or _if_all(
        part, lambda f: 1j * f, "a factor i is missing, or is one too many"
    )


def _wrong_factor(part: Part) -> str | None:
    for factor, name in FACTORS.items():
        for by, size in ((1 / factor, "large"), (factor, "small")):
            for sign, more in ((1, ""), (-1, ", and of the wrong sign")):
                mended = [sign * by * f for f in part.found]
                if _same(mended, part.truth, _near(part.below)):
                    return f"too {size} by a factor of {name}{more}"
    return None


def _power(part: Part) -> str | None:
    if any(np.iscomplexobj(f) or (f <= 0).any() for f in part.found):
        return None
    return (
        _if_all(part, lambda f: 1 / f, "yours is one over what it should be")
        or _if_all(part, np.sqrt, "yours is the square of what it should be")
        or _if_all(part, np.square, "yours is the square root of what it should be")
    )


def _only_the_length(part: Part) -> str | None:
    if any(t.size < 2 or not np.any(f) or not np.any(t) for f, t in zip(part.found, part.truth)):
        return None
    scaled = [f * (np.vdot(f, t) / np.vdot(f, f)) for f, t in zip(part.found, part.truth)]
    if _same(scaled, part.truth, _near(part.below)):
        return "the direction is right, and the length is not"
    return None


#: what is tried on an answer that is wrong, in this order
HINTS: list[Callable[[Part], str | None]] = [
    _not_a_number,
    _transposed,
    _wrong_shape,
    _single_precision,
    _rounded,
    _wrong_sign,
    _conjugated,
    _wrong_factor,
    _power,
    _only_the_length,
]


def _if_all(part: Part, mend: Callable[[np.ndarray], Any], sentence: str) -> str | None:
    """The sentence, if what it says mends the answer at all arguments."""
    mended = [mend(f) for f in part.found]
    if any(f is None for f in mended) or not _same(mended, part.truth, _near(part.below)):
        return None
    return sentence


# --- comparing and naming


def _error(found: np.ndarray, truth: np.ndarray) -> float:
    """The relative error; where the truth is zero, the absolute one."""
    size = float(np.linalg.norm(truth)) or 1.0
    return float(np.linalg.norm(found - truth)) / size


def _same(found: Sequence[np.ndarray], truth: Sequence[np.ndarray], below: float) -> bool:
    return all(f.shape == t.shape and _error(f, t) < below for f, t in zip(found, truth))


def _near(below: float) -> float:
    """How near to a mistake an answer must be to be that mistake: a hint may be given to a rounded number."""
    return max(below, 1e-4)


def _missing(answer: Any) -> bool:
    return answer is None or (isinstance(answer, (tuple, list)) and len(answer) > 0 and all(x is None for x in answer))


def _array(x: Any) -> np.ndarray:
    """A number, an array, a tensor, or a list of them; TypeError for what is no number."""
    if isinstance(x, (tuple, list)):
        return np.array([_array(part) for part in x])
    if isinstance(x, (str, bytes, bool, set, frozenset, dict)) or x is None or callable(x):
        raise TypeError
    array: np.ndarray = x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)
    if array.dtype == np.bool_ or not np.issubdtype(array.dtype, np.number):
        raise TypeError
    return array


def _given(x: Any) -> Any:
    """An argument as a reader's function takes it: arrays as tensors on the device, all else as it is."""
    import torch

    from svdgrad import lab

    if isinstance(x, tuple):
        parts = [_given(part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    return torch.tensor(x, device=lab.device()) if isinstance(x, (np.ndarray, np.generic)) else x


def _stopped(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return f"stopped with {type(problem).__name__}{f': {lines[0]}' if lines else ''}"


def _called_with(exercise: Exercise, arguments: tuple[Any, ...]) -> str:
    """The arguments in words: numbers and short vectors by their values, other arrays by their shape."""
    words = []
    for name, x in zip(exercise.parameters, arguments):
        if isinstance(x, numbers.Number):
            words.append(f"{name} = {x:g}" if not isinstance(x, complex) else f"{name} = {x}")
        elif isinstance(x, np.ndarray) and x.ndim == 1 and x.size <= 5 and not np.iscomplexobj(x):
            words.append(f"{name} = [{', '.join(f'{entry:.3g}' for entry in x)}]")
        else:
            words.append(f"{name} of shape {x.shape}" if isinstance(x, np.ndarray) and x.ndim else name)
    return _listed(words)


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "nothing"


def _kind(x: Any) -> str:
    """What an answer is, in words."""
    if isinstance(x, (tuple, list)):
        return f"{len(x)} of them" if len(x) != 1 else "a single one"
    if isinstance(x, (bool, np.bool_)):
        return "True or False"
    if isinstance(x, numbers.Number):
        return "a number"
    if hasattr(x, "shape"):
        return f"an array of the shape {tuple(x.shape)}" if len(x.shape) else "a number"
    return "a function" if callable(x) else f"{x!r}" if isinstance(x, str) else f"a {type(x).__name__}"
