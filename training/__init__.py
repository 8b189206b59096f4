"""Train a bundle from a folder of videos: prepare, train the parts, export.

Knows models/ only; not the service, nor evaluation. No label enters training.

train.py     Run the stages of `clipsynth train`.
recipe.py    Typed recipes.
loop.py      The loop of every stage, with logs and the stop on signals.
progress.py  Show the progress of all stages.
state.py     Saved states: resume, best weights, averaged weights.
export.py    Write the bundle and its model card.
average.py   Average the weights of two bundles.
prior.py     Fit a step from texts to images without captions.
photo_head.py  Train the image head of the second packaged encoder.
"""
