"""Decimal integers from one to another, as a GBNF expression. Pure arithmetic on digits."""

from __future__ import annotations


def integers_between(least: int, most: int) -> str:
    """All integers from `least` to `most` without leading zeros, and no others; `least` <= `most`."""
    options = []
    if least < 0:
        options.append(f'"-" ({_naturals(max(1, -most), -least)})')
    if most >= 0:
        options.append(_naturals(max(0, least), most))
    return " | ".join(options)


def _naturals(least: int, most: int) -> str:
    options = []
    for length in range(len(str(least)), len(str(most)) + 1):
        low = max(least, 10 ** (length - 1) if length > 1 else 0)
        high = min(most, 10**length - 1)
        options += _same_length(str(low), str(high))
    return " | ".join(options)


def _same_length(low: str, high: str) -> list[str]:
    """Alternatives for the digit strings from `low` to `high`: at most two digits' worth a place."""
    if not low:
        return [""]
    if low.strip("0") == "" and high.strip("9") == "":
        return [f"[0-9]{{{len(low)}}}"]
    first, last, rest = int(low[0]), int(high[0]), len(low) - 1
    if first == last:
        return [f'"{first}" {tail}'.strip() for tail in _same_length(low[1:], high[1:])]
    options = [f'"{first}" {tail}'.strip() for tail in _same_length(low[1:], "9" * rest)]
    if last - first > 1:
        middle = f"[{first + 1}-{last - 1}]"
        options.append(f"{middle} [0-9]{{{rest}}}" if rest else middle)
    options += [f'"{last}" {tail}'.strip() for tail in _same_length("0" * rest, high[1:])]
    return options
