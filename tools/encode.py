"""Encode the bundled data once: `python tools/encode.py vae`.

Writes the modes of the latents of the training and the test images, not scaled, as float16, into mnistgen/weights/latents-NAME.safetensors. The header has the checksums of the autoencoder's weights
and of the images. `Latents.encode_data` takes them from there where both fit, which saves a processor without half precision many minutes.
Encoded in float32 without the engine's tricks; says by how much the float16 numbers and the engine's differ from that, on the test images. Ten minutes on one core."""
import argparse, sys
from pathlib import Path

top = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(top))

def rms(x): return x.double().square().mean().sqrt().item()

def main(name):
    import mnistgen
    from mnistgen.lab.data import BUNDLED, load_images
    from mnistgen.lab.store import checksum, save_checkpoint
    from mnistgen.ldm import stored_latents
    exact, fast = mnistgen.load(name, 'cpu', plain=True), mnistgen.load(name, 'cpu')
    sets = {split: load_images(split=split, root=BUNDLED).pixels for split in ('train', 'test')}
    mode, logvar = exact.posterior(sets['test'])
    noise, stored, engine = rms((logvar/2).exp()), mode.half().float() - mode, fast.encode(sets['test']) - mode
    for what, d in (('float16', stored), ("the engine's", engine)):
        print(f"{what}: differs by {d.abs().max():.4f} at most, root mean square {rms(d):.5f}, {rms(d)/noise:.3f} of the posterior's deviation ({noise:.4f})", flush=True)
    tensors = dict(train=exact.encode(sets['train']).half(), test=mode.half())
    header = dict(autoencoder=exact.header['checksum'], images={split: checksum(dict(pixels=x)) for split, x in sets.items()}, arithmetic='float32')
    save_checkpoint(stored_latents(name), tensors, header)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('name', choices=['vae', 'vae-light'])
    main(p.parse_args().name)
