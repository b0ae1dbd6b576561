"""What validation costs a training: its share of the time, and the memory at its peak beside that of a step.

    python bench/watching.py TOKENIZER [--model FOLDER] [--micro 8] [--steps 12] [--every 4] [--clips 24]

The model, the examples and the T4's memory are those of `bench/train.py`, whose full-size architecture is written where
--model names nothing. Two runs of `fit`, a process each: one that never validates, and one that does so every so many
steps, with the answers that `vlmtemporal train` asks for. The share is that of the default, one every 50 steps.
"""
import argparse, json, statistics, sys, tempfile, time
from pathlib import Path
from unittest.mock import patch

from sampling import table
from train import as_on_a_t4, examples, full_size, in_a_process


def one(model: str, shards: str, micro: int, steps: int, every: int, clips: int) -> dict:
    "Seconds of steps and of validations, and the memory that was taken at most."
    import torch
    from transformers import TrainerCallback
    from vlmtemporal import train, watching
    from vlmtemporal.evaluation import observe
    as_on_a_t4()
    took, steps_took, gpu = [], [], torch.cuda.is_available()
    validate, make_trainer = watching.validate, train.make_trainer
    def timed(watch) -> bool:
        begin = time.monotonic()
        try: return validate(watch)
        finally: took.append(time.monotonic() - begin)
    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__): self.begin = time.monotonic()
        def on_step_end(self, *_, **__):
            if gpu: torch.cuda.synchronize()
            steps_took.append(time.monotonic() - self.begin)
    def with_clock(*args, **kwargs):
        trainer = make_trainer(*args, **kwargs)
        trainer.add_callback(Clock())
        return trainer
    effective = 16 if gpu else 2*micro
    settings = dict(max_steps=steps, micro_batch=micro, accumulation=effective//micro, warmup=0, validate_steps=every,
                    validate_clips=clips, save_steps=1000)
    config = train.train_config(settings=[f'{k}={v}' for k, v in settings.items()])
    with (tempfile.TemporaryDirectory() as out, patch.object(watching, 'validate', timed),
          patch.object(train, 'make_trainer', with_clock)):
        run = train.fit(shards, Path(out)/'run', model, config, observe=observe)
    peaks = (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved)
    if len(run.validations) != (steps//every if every else 0): sys.exit('not all validations were made')
    return dict(pace=statistics.median(steps_took[1:]), took=took,
                peak=[round(f()/2**30, 2) if gpu else 0. for f in peaks])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('tokenizer', type=Path)
    parser.add_argument('--model', help='a checkpoint; else one of random weights is written')
    parser.add_argument('--micro', type=int, default=8)
    parser.add_argument('--steps', type=int, default=12)
    parser.add_argument('--every', type=int, default=4)
    parser.add_argument('--clips', type=int, default=24)
    parser.add_argument('--job', help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.job: return print(json.dumps(one(**json.loads(a.job))))
    with tempfile.TemporaryDirectory() as folder:
        model = a.model or str(Path(folder)/'model')
        if not a.model: full_size(Path(model), a.tokenizer)
        shards, some = Path(folder)/'shards', max(16, 4*a.micro)
        examples(shards/'train', some)
        examples(shards/'val', 2*a.clips, 'val', 'U0107')
        job = dict(model=model, shards=str(shards), micro=a.micro, steps=a.steps, clips=a.clips)
        found = [in_a_process(a.tokenizer, '--job', json.dumps(job | dict(every=n)), program=__file__)
                 for n in (0, a.every)]
    if broken := [r for r in found if isinstance(r, str)]: sys.exit('\n'.join(broken))
    without, with_it = found
    seconds = statistics.median(with_it['took'])
    rows = [['seconds a step', f'{without["pace"]:.2f}', f'{with_it["pace"]:.2f}'],
            ['seconds a validation', '', f'{seconds:.2f}'],
            ['share of the time, every 50 steps', '', f'{seconds/(seconds + 50*without["pace"]):.1%}'],
            ['GiB allocated / reserved', *('{} / {}'.format(*r['peak']) for r in found)]]
    table('What validation costs', ['', 'never', f'every {a.every} steps'], rows)


if __name__ == '__main__': main()
