"""Two players in one backward pass: what is judged learns from the judge, and the judge does not learn from it."""

from torch.func import functional_call


def with_detached_weights(module, *inputs, **named_inputs):
    """`module(*inputs, **named_inputs)`, whose gradients flow to the inputs but not to the module's weights.

    With the discriminator's loss on `discriminator(real)` and `discriminator(fake.detach())`, and the generator's on
    `with_detached_weights(discriminator, fake)`, the gradients of the sum of both are those of two optimizers, each with a
    backward pass of its own before either steps. Buffers are the module's own: a batch norm in training mode moves its
    running statistics in this call as in any other.
    """
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    return functional_call(module, weights, inputs, named_inputs)
