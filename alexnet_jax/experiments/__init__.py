"""What the paper claims, measured again: sets of runs, and the table that comes of them.

runs            a set of runs: made once, resumed, shared by several processes
tables          text and CSV; means and their standard errors
seeds           any network over several seeds
figure1         ReLU against tanh (section 3.1)
lrn_cifar       normalization in the four-layer network (section 3.3)
ablations       each idea left out (sections 3 to 5, 7)
ensembles       several networks as one (section 6)
specialisation  colours in one tower (section 6.1)
baseline        SIFT, Fisher vectors and a linear SVM: what the paper beat (tables 1 and 2)
"""

ALL = {
    "figure1": ("figure1", "ReLU against tanh"),
    "lrn_cifar": ("lrn_cifar", "normalization in four layers"),
    "ablations": ("ablations", "each idea left out"),
    "ensemble5": ("ensembles", "five networks averaged"),
    "six_conv": ("ensembles", "seven, two of them pretrained"),
    "specialisation": ("specialisation", "colours in one tower"),
    "baseline": ("baseline", "SIFT, Fisher vectors, linear SVM"),
    "seeds": ("seeds", "any network over several seeds"),
}
"""The experiments: the module that carries each out, and what it is, in words."""
