"""An explorer of a trained network, for people who teach and learn AlexNet.

forward      one image through the network with every layer's output, and "what if"
blocks       the layers as blocks with their sizes, and normalization at one pixel
pixels       which pixels matter
neighbours   the nearest training images
pictures     arrays as pictures
figure2      the paper's Figure 2 for any network
subject      a network with its classes and images
slides       the views as PNG files
html, panels the parts of the page
page         the page, made with Gradio
"""
