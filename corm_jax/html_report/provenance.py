"""Where the numbers come from: what all models have in common, and what each has of its own."""

from collections.abc import Sequence
from html import escape
from typing import Any

from corm_jax.html_report.evaluations import Evaluation

HASH = 12  # digits of a hash that are shown


def provenance(evaluations: Sequence[Evaluation]) -> str:
    """Returns a list of what is the same for all evaluations, and a table of what is not."""
    flat = [_flat(evaluation) for evaluation in evaluations]
    keys = dict.fromkeys(key for one in flat for key in one)
    same = [key for key in keys if all(one.get(key) == flat[0].get(key) for one in flat)]
    items = "".join(f"<dt>{escape(key)}</dt><dd>{_text(flat[0][key])}</dd>" for key in same)
    parts = [f"<h3>The same for all</h3><dl>{items}</dl>"]
    own = [key for key in keys if key not in same]
    if own:
        heads = "".join(f'<th scope="col">{escape(key)}</th>' for key in own)
        rows = "".join(
            f'<tr><th scope="row">{escape(evaluation.label)}</th>'
            + "".join(f"<td>{_text(one.get(key))}</td>" for key in own)
            + "</tr>"
            for evaluation, one in zip(evaluations, flat, strict=True)
        )
        parts.append(
            '<h3>Of each model</h3><div class="box" tabindex="0" role="region" '
            'aria-label="Provenance of each model"><table class="plain"><thead><tr>'
            f'<th scope="col">Model</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
        )
    return "".join(parts)


def summary(evaluations: Sequence[Evaluation], classes: int) -> str:
    """Returns one line of what was measured.

    Args:
      evaluations: of the page.
      classes: how many, 0 if unknown.
    """
    first = evaluations[0].provenance
    data, noise = first.get("data", {}), first.get("noise", {})
    facts = [f"{len(evaluations)} model{'s' if len(evaluations) > 1 else ''}"]
    name = data.get("name") or data.get("folder") or data.get("tfds_name")
    if name:
        # Of a path on somebody's machine the end says enough.
        name = str(name).rstrip("/").rpartition("/")[2] if str(name)[0] in "/~." else str(name)
        split = f" ({data['split']})" if "split" in data else ""
        facts.append(f"{name}{split}")
    if "images" in data:
        masked = first.get("masks", {}).get("images")
        facts.append(f"{data['images']:,} images" + (f", {masked:,} masked" if masked else ""))
    if classes:
        facts.append(f"{classes:,} classes")
    if noise:
        trials = f"{noise['trials']} draw{'s' if noise['trials'] > 1 else ''}"
        facts.append(f"noise of standard deviation {noise['sigma']}, {trials}")
    return escape(" · ".join(facts))


def _flat(evaluation: Evaluation) -> dict[str, Any]:
    return {
        f"{group}.{key}": value
        for group, keys in evaluation.provenance.items()
        for key, value in keys.items()
    }


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return escape(", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value))
    text = str(value)
    digits = text.removeprefix("sha256:")
    if len(digits) == 64 and not set(digits) - set("0123456789abcdef"):
        return f'<code title="{escape(text)}">{escape(digits[:HASH])}…</code>'
    return escape(text)
