"""The fold: one window of tokens in, its slots out. The same code trains and serves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import AdapterError
from beacon_memory.fold.anchors import Spread, pick, shared, surprise
from beacon_memory.fold.attention import Beacons, heads_last, normed, valued
from beacon_memory.fold.layout import interleaved, unit_ends
from beacon_memory.fold.passes import Enough, InterleavePass, LookBackPass, RawPass, ShadowPass
from beacon_memory.fold.place import reads_on
from beacon_memory.fold.prefix import Prefix
from beacon_memory.fold.projections import Pass, rows_at

if TYPE_CHECKING:
    from beacon_memory.state.recurrent import Recurrent


class Folded(NamedTuple):
    """What a window leaves behind, in the model's dtype."""

    keys: Tensor  # (layers, batch, kv_heads, sink + slots, head_dim), before RoPE
    values: Tensor  # (layers, batch, kv_heads, sink + slots, head_dim)
    hidden: Tensor  # (batch, sink + tokens, hidden): the raw rows' last states, from which the next token is predicted
    raw: RawPass | None = None  # where the layout reads the window as it is: its raw keys and values
    # The token that each slot stands for, counted from the first one after the sinks; layers, batch and heads may be 1.
    places: Tensor | None = None  # (layers, batch, kv_heads, slots)
    recurrent: Recurrent | None = None  # what recurrent layers have read, this window included


def fold(
    beacons: Beacons,
    past: Prefix,
    ids: Tensor,
    *,
    ratio: int,
    sink: int,
    config: BeaconConfig,
    overlap: int = 0,
    states: bool = True,
) -> Folded:
    """The slots of a window behind `past`; at ratio 1 every token is one.

    ids: (batch, overlap + sink + tokens); the first `overlap` of them belong to the window before, and leave no slots.
    Without `states` there may be no `hidden`: slots need only the keys and values of the last layer.
    """
    if ratio == 1:
        raw = RawPass(past, ids.shape[1], last=_last(beacons, states=states))
        hidden = read(beacons.lm, raw, embed(beacons.lm, ids), torch.arange(ids.shape[1]) + past.slots)
        places = torch.arange(ids.shape[1] - overlap - sink)[None, None, None]
        folded = Folded(stacked(raw.keys), stacked(raw.values), hidden, raw, places, raw.recurrent)
    else:
        make = _LAYOUTS[config.layout]
        folded = make(beacons, past, ids, ratio=ratio, sink=overlap + sink, config=config, states=states)
    if not overlap:
        return folded
    return folded._replace(
        keys=folded.keys[..., overlap:, :],
        values=folded.values[..., overlap:, :],
        hidden=folded.hidden[:, overlap:],
        raw=None,
    )


def _select(
    beacons: Beacons, past: Prefix, ids: Tensor, *, ratio: int, sink: int, config: BeaconConfig, states: bool
) -> Folded:
    """Each head's anchors, through the beacon k and v projections."""
    raw, hidden, scores = scored(beacons, past, ids, config=config, states=states)
    window = ids.shape[1] - sink
    keys: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}
    places: dict[int, Tensor] = {}
    choose = Spread().pick if "spread" in scores else pick
    for layer, projections in enumerate(beacons.layers):
        found = {rule: by_layer[layer][..., sink:] for rule, by_layer in scores.items()}
        anchors = choose(config.shares, found, tokens=window, ratio=ratio, device=ids.device)
        places[layer] = anchors.to(ids.device)
        anchors = anchors + sink
        for name, all_rows, out in (("k", raw.keys[layer], keys), ("v", raw.values[layer], values)):
            positions = anchors.to(all_rows.device).expand(*all_rows.shape[:2], -1)
            if projections[name].trained:
                own = _own(beacons, raw, layer, name, anchors=positions)
            else:
                own = rows_at(all_rows, positions)
            out[layer] = torch.cat([all_rows[:, :, :sink], own], dim=2)
    at = stacked({layer: anchors[..., None] for layer, anchors in places.items()})[..., 0]
    return Folded(stacked(keys), stacked(values), hidden, raw, at, raw.recurrent)


def _own(beacons: Beacons, raw: RawPass, layer: int, name: str, *, anchors: Tensor) -> Tensor:
    """The trained keys or values at each head's anchors.  # (batch, kv_heads, anchors, head_dim)"""
    projection, attention = beacons.layers[layer][name], beacons.attention(layer)
    hidden, based = raw.hidden[layer], raw.based[layer, name]
    if name == "k" and attention.beacon_layer.norm == "row":  # a head's norm depends on the others at its anchor
        return rows_at(heads_last(projection.beacon(hidden, based=based), attention), anchors)
    own = projection.beacon_at(hidden, anchors, based=based)
    return normed(own, attention) if name == "k" else valued(own, attention)


def _shadow(
    beacons: Beacons, past: Prefix, ids: Tensor, *, ratio: int, sink: int, config: BeaconConfig, states: bool
) -> Folded:
    """Beacon rows started from their anchors' embeddings; one anchor per beacon in all layers and heads."""
    batch, rows = ids.shape
    scores: dict[str, Tensor] = {}
    if config.anchors != "last":
        _, _, by_layer = scored(beacons, past, ids, config=config, states=False)
        scores = {rule: shared(torch.stack(list(found)))[..., sink:] for rule, found in by_layer.items()}
    picked = pick(config.shares, scores, tokens=rows - sink, ratio=ratio, device=ids.device)
    anchors = picked[:, 0].expand(batch, -1) + sink
    places = (anchors - sink)[None, :, None]
    embedded = embed(beacons.lm, ids)
    started = embedded.gather(1, anchors[..., None].expand(-1, -1, embedded.shape[2]))
    if beacons.offset is not None:
        started = started + beacons.offset
    positions = torch.cat([torch.arange(rows, device=ids.device).expand(batch, -1), anchors], dim=1)
    shadow = ShadowPass(past, rows, anchors, last=_last(beacons, states=states))
    hidden = read(beacons.lm, shadow, torch.cat([embedded, started], dim=1), positions + past.slots)
    kept = _kept(shadow.keys, sink, rows), _kept(shadow.values, sink, rows)
    return Folded(*kept, hidden[:, :rows], places=places)


def _interleave(
    beacons: Beacons, past: Prefix, ids: Tensor, *, ratio: int, sink: int, config: BeaconConfig, states: bool
) -> Folded:
    """The paper's beacon tokens."""
    batch, rows = ids.shape
    raw_positions, beacon_positions = interleaved(rows, ratio, sink=sink)
    embedded = embed(beacons.lm, ids)
    start = beacon_start(beacons).expand(batch, len(beacon_positions), -1)
    positions = torch.cat([raw_positions, beacon_positions])
    woven = InterleavePass(past, rows, positions, last=_last(beacons, states=states))
    hidden = read(beacons.lm, woven, torch.cat([embedded, start], dim=1), positions + past.slots)
    kept = _kept(woven.keys, sink, rows), _kept(woven.values, sink, rows)
    return Folded(*kept, hidden[:, :rows], places=unit_ends(rows - sink, ratio)[None, None, None])


_LAYOUTS: dict[str, Callable[..., Folded]] = {"select": _select, "shadow": _shadow, "interleave": _interleave}


def scored(
    beacons: Beacons, past: Prefix, ids: Tensor, *, config: BeaconConfig, states: bool = True
) -> tuple[RawPass, Tensor, dict[str, list[Tensor]]]:
    """A raw pass, its last states where they are wanted, and for each scored rule its scores by layer.

    # (batch, rows, hidden), rule -> layers x (batch, heads, rows)
    """
    rules = {rule for rule, _ in config.shares}
    lm, rows = beacons.lm, ids.shape[1]
    embedded = embed(lm, ids)
    layers = len(beacons.layers)
    last = _last(beacons, states=states or "surprise" in rules)
    raw = RawPass(past, rows, rotated="reconstruct" in rules, last=last)
    hidden = read(lm, raw, embedded, torch.arange(rows) + past.slots)
    scores: dict[str, list[Tensor]] = {}
    if "surprise" in rules:
        with torch.no_grad():
            scores["surprise"] = [surprise(partial(predicted, lm), hidden, ids)] * layers
    if "reconstruct" in rules:
        scores["reconstruct"] = look_back(lm, raw, embedded)
    for rule in sorted(rules & {"learned", "spread"}):
        if len(raw.scores) != layers:
            raise AdapterError(f"anchors {rule!r} need an adapter with a scorer: fit one, or choose 'reconstruct'")
        scores[rule] = [raw.scores[layer] for layer in range(layers)]
    return raw, hidden, scores


def look_back(lm: Any, raw: RawPass, embedded: Tensor, *, mean: bool = False) -> list[Tensor]:
    """How much more tokens, read behind a window, look back at each of its tokens; the window read with `rotated` kept.

    embedded: (batch, rows, hidden), the tokens that look back.  # layers x (batch, kv_heads, rows of the window)
    """
    rows, window = embedded.shape[1], raw.keys[0].shape[2]
    back = LookBackPass(raw, rows, mean=mean)
    with torch.no_grad():
        read(lm, back, embedded, torch.arange(rows) + raw.past.slots + window)
    return [back.scores[layer] for layer in range(len(back.scores))]


def read(lm: Any, rows: Pass, embedded: Tensor, positions: Tensor) -> Tensor:
    """One stock forward of the decoder under a pass; gives the last hidden states, or none where the pass ended it.

    # (batch, rows, hidden)
    """
    positions = positions.to(embedded.device)
    try:
        output: Any = lm.model(
            **entering(lm, embedded),
            position_ids=positions if positions.ndim == 2 else positions[None],
            # A four-dimensional mask is taken as it is, so none is built; the pass brings its own.
            attention_mask=torch.zeros(1, 1, 1, 1, dtype=embedded.dtype, device=embedded.device),
            use_cache=False,
            beacon_pass=rows,
        )
    except Enough:
        return embedded[:, :0]
    hidden: Tensor = output.last_hidden_state
    return hidden


def embed(lm: Any, ids: Tensor) -> Tensor:
    """What enters the model for ids: their embeddings, and behind them what each layer is given anew, if any is.

    # (batch, rows, hidden + what layers are given)
    """
    embedded: Tensor = lm.get_input_embeddings()(ids)
    if not getattr(lm.config, "hidden_size_per_layer_input", 0):
        return embedded
    return torch.cat([embedded, lm.model.get_per_layer_inputs(ids, None).flatten(-2)], dim=-1)


def entering(lm: Any, embedded: Tensor) -> dict[str, Tensor]:
    """What was embedded, as the arguments of the model's forward."""
    width = getattr(lm.config, "hidden_size_per_layer_input", 0)
    if not width:
        return {"inputs_embeds": embedded}
    hidden = lm.config.hidden_size
    by_layer = embedded[..., hidden:].reshape(*embedded.shape[:-1], lm.config.num_hidden_layers, width)
    return {"inputs_embeds": embedded[..., :hidden], "per_layer_inputs": by_layer}


def predicted(lm: Any, hidden: Tensor) -> Tensor:
    """The next-token logits of last hidden states, scaled and limited as the model does it.  # (…, vocabulary)"""
    logits: Tensor = lm.lm_head(hidden)
    if (scale := getattr(lm.config, "logits_scaling", 1)) != 1:
        logits = logits / scale
    cap = getattr(lm.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def beacon_start(beacons: Beacons) -> Tensor:
    """Where an interleaved beacon starts: its own embedding; untrained, that of the first EOS id, as in the paper."""
    if beacons.embedding is not None:
        return beacons.embedding
    end: Any = beacons.lm.config.eos_token_id
    first = end[0] if isinstance(end, list) else end
    return embed(beacons.lm, torch.tensor(first or 0, device=reads_on(beacons.lm)))


def zero_row(lm: Any) -> Tensor:
    """A row of zeros where and as embeddings are.  # (hidden)"""
    return torch.zeros_like(embed(lm, torch.tensor(0, device=reads_on(lm))))


def stacked(by_layer: dict[int, Tensor]) -> Tensor:
    """What was kept by layer, as one tensor on the first one's device; fewer or narrower heads are filled with zeros.

    # by layer: (batch, kv_heads, rows, width); (layers, batch, kv_heads, rows, width)
    """
    layers = [by_layer[layer].to(by_layer[0].device) for layer in range(len(by_layer))]
    heads, width = (max(rows.shape[dim] for rows in layers) for dim in (1, 3))
    if all(rows.shape[1] == heads and rows.shape[3] == width for rows in layers):
        return torch.stack(layers)
    lacking = [(width - rows.shape[3], heads - rows.shape[1]) for rows in layers]
    padded = [nn.functional.pad(rows, (0, w, 0, 0, 0, h)) for rows, (w, h) in zip(layers, lacking, strict=True)]
    return torch.stack(padded)


def _last(beacons: Beacons, *, states: bool) -> int | None:
    """The layer of which only keys and values are computed: the model's last one, if its states are not wanted."""
    return None if states else beacons.last


def _kept(by_layer: dict[int, Tensor], sink: int, raw: int) -> Tensor:
    """The sinks of the raw block and the whole beacon block."""
    rows = stacked(by_layer)
    return torch.cat([rows[..., :sink, :], rows[..., raw:, :]], dim=-2)
