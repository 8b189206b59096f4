"""Studies of one or several bundles on labelled clips: `clipsynth study NAME`.

context      options, clips, judge and figures that all studies share
study        the sweep: measure every point, write the results
ablation     bundles with and without a remedy of training
attributes   target levels of attributes against measured values
ceiling      classes of the training images nearest to a query
ladder       remedies against the text gap, at request time
sets         two sounds at once
steps        quality against the number of sampling steps
variants     one bundle with other settings
"""
