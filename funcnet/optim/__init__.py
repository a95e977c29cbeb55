"""Optimizers as pure state transitions, and penalties, in Optax's protocol.

Each is an `optax.GradientTransformation`: `init(params) -> state` and
`update(grads, state, params) -> (updates, state)`. Optax's schedules (learning-rate decay),
clipping, masks, `optax.chain` and `optax.apply_updates` work with them and are not repeated here.

>>> import jax, jax.numpy as jnp, optax
>>> schedule = optax.exponential_decay(0.5, transition_steps=10, decay_rate=0.5)
>>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), l2(1e-3), momentum(schedule))
>>> params = {"w": jnp.array([3.0, -4.0])}
>>> state = optimizer.init(params)
>>> updates, state = optimizer.update({"w": params["w"]}, state, params)
>>> print(optax.apply_updates(params, updates)["w"].round(2))
[ 2.7 -3.6]

The learning rate and the other numbers may be traced, so that a sweep is a `jax.vmap` over a
function that builds its optimizer, and compiles once.

>>> def after_one_step(learning_rate):
...     optimizer = adam(learning_rate)
...     updates, _ = optimizer.update({"w": params["w"]}, optimizer.init(params))
...     return optax.apply_updates(params, updates)["w"]
>>> print(jax.vmap(after_one_step)(jnp.array([0.5, 1.0])).round(2))
[[ 2.5 -3.5]
 [ 2.  -3. ]]

The state is kept in float32 where params are narrower (bfloat16, float16), and its dtypes never
change; updates have the dtypes of the gradients.
"""

from funcnet.ops.penalties import elastic_net_penalty as elastic_net_penalty
from funcnet.ops.penalties import l1_penalty as l1_penalty
from funcnet.ops.penalties import l2_penalty as l2_penalty
from funcnet.optim.adam import adam as adam
from funcnet.optim.adam import adamw as adamw
from funcnet.optim.adaptive import adagrad as adagrad
from funcnet.optim.adaptive import rmsprop as rmsprop
from funcnet.optim.penalties import elastic_net as elastic_net
from funcnet.optim.penalties import l1 as l1
from funcnet.optim.penalties import l2 as l2
from funcnet.optim.sgd import momentum as momentum
from funcnet.optim.sgd import nesterov as nesterov
from funcnet.optim.sgd import sgd as sgd
