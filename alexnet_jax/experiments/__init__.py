"""The claims of the paper, measured again: sets of runs, and a table of their results.

runs            a set of runs: each made once and resumed; several processes can share the work
tables          text and CSV; means and their standard errors
seeds           any network over several seeds
figure1         ReLU against tanh (section 3.1)
lrn_cifar       normalization in cuda-convnet's network for CIFAR-10 (section 3.3)
cifar           cuda-convnet's networks for CIFAR-10 beside their published errors (section 3.3)
ablations       the cost of leaving out each idea (sections 3 to 5, 7)
ensembles       several networks averaged (section 6)
specialisation  colours in one tower (section 6.1)
baseline        SIFT, Fisher vectors and a linear SVM: the system that the paper beat (tables 1 and 2)
"""

ALL = {
    "figure1": ("figure1", "ReLU against tanh"),
    "lrn_cifar": ("lrn_cifar", "normalization on CIFAR-10"),
    "cifar": ("cifar", "cuda-convnet's networks for CIFAR-10"),
    "ablations": ("ablations", "the cost of leaving out each idea"),
    "ensemble5": ("ensembles", "five networks averaged"),
    "six_conv": ("ensembles", "seven networks averaged, two of them pretrained"),
    "specialisation": ("specialisation", "colours in one tower"),
    "baseline": ("baseline", "SIFT, Fisher vectors, linear SVM"),
    "seeds": ("seeds", "any network over several seeds"),
}
"""The experiments: the module of each, and words for what it measures."""
