"""Optimizers as pure state transitions, and penalties, in Optax's protocol.

Each is an `optax.GradientTransformation`: `init(params) -> state` and
`update(grads, state, params) -> (updates, state)`. Optax's schedules (learning-rate decay),
clipping, masks, `optax.chain` and `optax.apply_updates` work with them and are not reimplemented.

>>> import jax, jax.numpy as jnp, optax
>>> schedule = optax.exponential_decay(0.5, transition_steps=10, decay_rate=0.5)
>>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), l2(1e-3), momentum(schedule))
>>> params = {"w": jnp.array([3.0, -4.0])}
>>> state = optimizer.init(params)
>>> updates, state = optimizer.update({"w": params["w"]}, state, params)
>>> print(optax.apply_updates(params, updates)["w"].round(2))
[ 2.7 -3.6]

The learning rate and the other hyperparameters may be traced. A sweep is therefore a `jax.vmap`
over a function that builds its optimizer, and it compiles once.

>>> def after_one_step(learning_rate):
...     optimizer = adam(learning_rate)
...     updates, _ = optimizer.update({"w": params["w"]}, optimizer.init(params))
...     return optax.apply_updates(params, updates)["w"]
>>> print(jax.vmap(after_one_step)(jnp.array([0.5, 1.0])).round(2))
[[ 2.5 -3.5]
 [ 2.  -3. ]]

`update` checks that gradients, state and parameters match in structure, shapes and dtypes, and that
the state belongs to this optimizer.

The state is kept in float32 if params are narrower (bfloat16, float16), and its dtypes never
change. Updates have the dtypes of the parameters if `update` gets params, else those of the
gradients; note that in float16 a step of 1e-8 is 0. If a gradient is None, so is its update. If it
has dtype float0, as for an integer parameter, its step is 0.

Parameters may be complex. In an optimizer, g ⊙ g is then |g|², which is real, as in Optax. For a
real loss L of p = x + iy, `jax.grad` returns ∂L/∂x − i ∂L/∂y. Its conjugate is the direction of
ascent, so give `update` the conjugate. The penalties take real parameters only.

Updates can be differentiated with respect to the learning rate, the parameters or the gradients
(meta-learning), also where gradients are 0.
"""

from funcnet.ops.penalties import elastic_net_penalty, l1_penalty, l2_penalty
from funcnet.optim.adam import AdamState, AMSGradState, adam, adamw
from funcnet.optim.adaptive import (
    AdaGradState,
    CenteredRMSPropState,
    RMSPropState,
    adagrad,
    rmsprop,
)
from funcnet.optim.averaged import AveragedState, averaged
from funcnet.optim.penalties import elastic_net, l1, l2
from funcnet.optim.sgd import MomentumState, SGDState, momentum, nesterov, sgd

__all__ = [
    "AMSGradState",
    "AdaGradState",
    "AdamState",
    "AveragedState",
    "CenteredRMSPropState",
    "MomentumState",
    "RMSPropState",
    "SGDState",
    "adagrad",
    "adam",
    "adamw",
    "averaged",
    "elastic_net",
    "elastic_net_penalty",
    "l1",
    "l1_penalty",
    "l2",
    "l2_penalty",
    "momentum",
    "nesterov",
    "rmsprop",
    "sgd",
]
