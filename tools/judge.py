"""Store what the judges see in real digits: `python tools/judge.py`.

Assesses 10,000 images of each split with the bundled judges, measures what so many real digits
score for the usual numbers of samples, and writes both to mnistgen/weights/judge-real.safetensors,
from which every evaluation starts. To be run again where a judge is replaced; until then
evaluations compute what they need by themselves, as the checksums in the file no longer fit."""
import argparse, sys
from pathlib import Path

top = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(top))
SIZES = 10_000, 5_000, 2_000, 1_000, 500, 256, 100, 64

def main():
    import torch
    from mnistgen.lab.store import save_checkpoint, versions
    from mnistgen.zoo.evaluation import STORED, Judge, _identity
    judge, tensors = Judge(stored=False), {}
    for split, seen in judge.real.items():
        # half precision is enough for features: the distances move by less than a thousandth
        tensors[f'{split}.features'] = seen.features.to(torch.float16)
        tensors[f'{split}.digits'] = seen.digits.to(torch.uint8)
        tensors[f'{split}.confidence'] = seen.confidence
    floors = {n: judge.floor(n) for n in SIZES}
    header = dict(model='judge-real', identity=_identity(judge), floors=floors, **versions())
    save_checkpoint(STORED, tensors, header)
    print(f'{STORED.relative_to(top)}: {STORED.stat().st_size/1e6:.1f} MB')

if __name__ == '__main__':
    argparse.ArgumentParser(description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
