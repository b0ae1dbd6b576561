"""A frozen layer and its adapter, forward and backward: as in peft, in one step of autograd, and sharing an input.

    python bench/lora.py [--runs 20] [--tokens 12000] [--rank 16] [--rows q,gate,down,block]

On a GPU: the layers of Qwen2.5-VL-3B's language model in NF4, fp16 under autocast, float32 adapters, 8 texts of 1,500
tokens. On a CPU: small ones, to see that it runs. `block` is all seven layers of a block with random inputs and random
gradients, without what lies between them. Medians of runs that alternate; GiB are what a run takes at its peak beside
the weights, its inputs and its gradients. `apart` is the largest distance of an output or a gradient from peft's.
"""
import argparse, statistics, time

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from sampling import table
from vlmtemporal.kernels import fuse_adapters

GPU = torch.cuda.is_available()
DEVICE, DTYPE = ('cuda', torch.float16) if GPU else ('cpu', torch.float32)
HIDDEN, SHARED, INNER = (2048, 256, 11008) if GPU else (64, 32, 192)
WAYS = 'peft, dropout .05', 'peft', 'fused', 'shared'


def four_bits(features: int, outs: int, bias: bool):
    "A frozen NF4 layer of random numbers."
    layer = bnb.nn.Linear4bit(features, outs, bias, compute_dtype=DTYPE, compress_statistics=True, quant_type='nf4')
    weight = (torch.randn(outs, features)/features**.5).to(DTYPE)
    layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type='nf4', module=layer)
    if bias: layer.bias = nn.Parameter(torch.randn(outs).to(DTYPE), requires_grad=False)
    layer.support_avx512bf16_for_cpu = False
    return layer.to(DEVICE)


class Layers(nn.Module):
    "Layers by name that are given one input."
    def __init__(self, features: int, bias: bool = False, **outs: int):
        super().__init__()
        for name, n in outs.items(): setattr(self, name, four_bits(features, n, bias))
        self.features, self.outs = features, outs
    def forward(self, x): return [getattr(self, name)(x) for name in self.outs]


ROWS = {'q': lambda: [Layers(HIDDEN, True, q_proj=HIDDEN)],
        'gate': lambda: [Layers(HIDDEN, gate_proj=INNER)],
        'down': lambda: [Layers(INNER, down_proj=HIDDEN)],
        'block': lambda: [Layers(HIDDEN, True, q_proj=HIDDEN, k_proj=SHARED, v_proj=SHARED),
                          Layers(HIDDEN, o_proj=HIDDEN), Layers(HIDDEN, gate_proj=INNER, up_proj=INNER),
                          Layers(INNER, down_proj=HIDDEN)]}


def built(row: str, way: str, rank: int):
    "A peft model of a row's layers, in one of the ways."
    torch.manual_seed(0)
    base = nn.Module()
    base.parts = nn.ModuleList(ROWS[row]())
    base.is_loaded_in_4bit = True
    names = sorted({name for part in base.parts for name in part.outs})
    dropout = .05 if 'dropout' in way else 0.
    config = LoraConfig(r=rank, lora_alpha=2*rank, lora_dropout=dropout, target_modules=names, init_lora_weights=False)
    model = get_peft_model(base, config).train()
    if 'peft' not in way:
        assert fuse_adapters(model) == len(names), 'the trial failed'
        for m in model.modules():
            if way == 'fused' and hasattr(m, 'lora_A'): m.forward.shared = None
    return list(model.base_model.model.parts)


def one(parts: list, xs: list, grads: list) -> list:
    "Forward and backward of all parts; outputs, and the gradients of the inputs and of the adapters."
    with torch.autocast(DEVICE, DTYPE, enabled=GPU): outs = [out for part, x in zip(parts, xs) for out in part(x)]
    trained = [p for part in parts for p in part.parameters() if p.requires_grad]
    return [*outs, *torch.autograd.grad(outs, [*xs, *trained], grads)]


def timed(f) -> float:
    "Milliseconds."
    if not GPU:
        begin = time.perf_counter()
        f()
        return 1e3*(time.perf_counter() - begin)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    f()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def peak(f) -> float:
    "GiB that it takes beside what was there."
    if not GPU: return 0.
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    f()
    return (torch.cuda.max_memory_allocated() - before)/2**30


def apart(ours: list, theirs: list) -> float:
    "The largest distance, as a share of peft's."
    return max(float((a - b).detach().float().norm()/b.detach().float().norm()) for a, b in zip(ours, theirs))


def measured(row: str, tokens: int, rank: int, runs: int) -> tuple:
    "Milliseconds and GiB by way, and how far the last way's numbers are from peft's."
    g = torch.Generator(DEVICE).manual_seed(1)
    def draw(n): return torch.randn(8, tokens//8, n, device=DEVICE, dtype=DTYPE, generator=g)
    ways = {way: built(row, way, rank) for way in WAYS}
    xs = [draw(part.features).requires_grad_() for part in ways['peft']]
    grads = [draw(n) for part in ways['peft'] for n in part.outs.values()]
    taken: dict = {way: [] for way in WAYS}
    for _ in range(runs + 2):
        for way, parts in ways.items(): taken[way].append(timed(lambda parts=parts: one(parts, xs, grads)))
    memory = {way: peak(lambda parts=parts: one(parts, xs, grads)) for way, parts in ways.items()}
    far = apart(one(ways['shared'], xs, grads), one(ways['peft'], xs, grads))
    return {way: statistics.median(t[2:]) for way, t in taken.items()}, memory, far


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--runs', type=int, default=20)
    p.add_argument('--tokens', type=int, default=12000 if GPU else 800)
    p.add_argument('--rank', type=int, default=16)
    p.add_argument('--rows', default=','.join(ROWS))
    a = p.parse_args()
    rows = []
    for row in a.rows.split(','):
        ms, memory, far = measured(row, a.tokens, a.rank, a.runs)
        times = ms['peft']/ms['shared']
        rows.append((row, *(f'{ms[w]:.2f} / {memory[w]:.2f}' for w in WAYS), f'{times:.2f}', f'{far:.1e}'))
        if GPU: torch.cuda.empty_cache()
    where = torch.cuda.get_device_name() if GPU else 'CPU'
    table(f'{a.tokens} tokens, rank {a.rank}, {where}: ms / GiB', ('layers', *WAYS, 'times peft', 'apart'), rows)


if __name__ == '__main__': main()
