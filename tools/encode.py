"""Encode the bundled data once: `python tools/encode.py vae`.

Writes the modes of the latents of the training and the test images, not scaled, as float16, into
mnistgen/weights/latents-NAME.safetensors. The header has the checksums of the autoencoder's weights
and of the images. `Latents.encode_data` takes them from there where both fit, which saves a
processor without half precision many minutes.

Encodes in float32, without the engine. Prints by how much the float16 numbers, and those of the
engine, differ from that on the test images. Three minutes on one core."""
import argparse, sys
from pathlib import Path

top = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(top))

def rms(x): return x.double().square().mean().sqrt().item()

def report(what, difference, deviation):
    share = rms(difference)/deviation
    print(f'{what}: at most {difference.abs().max():.4f}, root mean square {rms(difference):.5f}, '
          f"{share:.4f} of the posterior's deviation ({deviation:.4f})", flush=True)

def main(name):
    import mnistgen
    from mnistgen.lab.data import BUNDLED, load_images
    from mnistgen.lab.store import checksum, save_checkpoint
    from mnistgen.ldm import stored_latents
    pixels = {split: load_images(split=split, root=BUNDLED).pixels for split in ('train', 'test')}
    exact = mnistgen.load(name, 'cpu', plain=True)
    mode, logvar = exact.posterior(pixels['test'])
    deviation = rms((logvar/2).exp())
    report('float16', mode.half().float() - mode, deviation)
    report('the engine', mnistgen.load(name, 'cpu').encode(pixels['test']) - mode, deviation)
    tensors = dict(train=exact.encode(pixels['train']).half(), test=mode.half())
    images = {split: checksum(dict(pixels=x)) for split, x in pixels.items()}
    header = dict(autoencoder=exact.header['checksum'], images=images, arithmetic='float32')
    save_checkpoint(stored_latents(name), tensors, header)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('name', choices=['vae', 'vae-light'])
    main(p.parse_args().name)
