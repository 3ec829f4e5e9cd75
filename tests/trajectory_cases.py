"""What is run against the slow reference: method, hyper-parameters, base optimizer and problem."""

from dataclasses import dataclass

STEPS = 25
SGD = ("sgd", {"lr": 0.1, "momentum": 0.9})
PLAIN = ("sgd", {"lr": 0.1})
NESTEROV = ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2})
ADAMW = ("adamw", {"lr": 1e-2, "weight_decay": 0.1})
AMSGRAD = ("amsgrad", {"lr": 1e-2})
DECAYED = ("amsgrad", {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1})


@dataclass
class Case:
    method: str
    settings: dict
    base: tuple = SGD
    problem: str = "MLP"

    def __str__(self):
        short = ",".join(f"{k}={getattr(v, '__name__', v)}" for k, v in self.settings.items())
        return f"{self.method}({short})-{self.base[0]}{len(self.base[1])}-{self.problem}"


def ramp(t):
    """A curve of the step, for the hyper-parameters that may be one."""
    return 0.02 + 0.08 * t / STEPS


EVERY = (
    "constant .5, constant .3, piecewise1 .4, piecewise2 .4, piecewise3 .2, linear1 .3, linear1 .7, linear2 .2, "
    "trigonometric .2"
)


def schedules(method, wanted=EVERY, **more):
    """One case per schedule of RST, and both branches of those that have two."""
    for pair in wanted.split(", "):
        schedule, p = pair.split()
        settings = {"rho": 0.1, "p": float(p), "schedule": schedule, "total_steps": STEPS, "seed": 3, **more}
        if schedule == "trigonometric":
            settings["p_end"] = 0.9
        yield Case(method, settings)


CASES = [
    Case("sam", {"rho": 0.1}),
    Case("sam", {"rho": 0.1}, PLAIN),
    Case("sam", {"rho": 0.1}, NESTEROV),
    Case("sam", {"rho": 0.1}, ADAMW),
    Case("sam", {"rho": 0.3}, PLAIN, "Quadratic"),
    Case("sam", {"rho": ramp}),
    Case("sam_adamw", {"rho": 0.05}, ADAMW),
    Case("asam", {"rho": 0.5}),
    Case("asam", {"rho": 1.0, "eta": 0.1}, ADAMW),
    Case("asam", {"rho": 0.5}, PLAIN, "Quadratic"),
    Case("layer_sam", {"rho": 0.1}),
    Case("layer_sam", {"rho": 0.1, "layerwise": "trust"}, ADAMW),
    Case("layer_sam", {"rho": 0.02, "layerwise": "paper"}),
    Case("layer_sam", {"rho": 0.02, "layerwise": "paper"}, ADAMW),
    *schedules("rst"),
    *schedules("rst", "linear1 .7, trigonometric .2", start_step=7),
    Case("rst", {"rho": 0.1}),
    Case("rst", {"rho": 0.1, "seed": 11}, ADAMW),
    *schedules("grst", "constant .3, piecewise3 .2, linear2 .2, trigonometric .2", gamma_max=3.0),
    Case("grst", {"rho": 0.1, "p": 0.5, "kappa": 0.7, "total_steps": STEPS, "start_step": 5, "seed": 4}),
    Case("grst", {"rho": 0.1, "p": 0.5, "total_steps": STEPS}, ADAMW),
    Case("gnp", {"rho": 0.1}),
    Case("gnp", {"rho": 0.1, "gamma": 0.3}, ADAMW),
    Case("gnp", {"rho": 0.1, "gamma": 2.0}),
    Case("look_sam", {"rho": 0.1}),
    Case("look_sam", {"rho": 0.1, "k": 3, "alpha": 0.2}, NESTEROV),
    Case("look_sam", {"rho": 0.1, "k": 7, "push": "natural"}),
    Case("look_sam", {"rho": 0.1, "k": 5, "push": "natural"}, ADAMW),
    Case("look_sam", {"rho": 0.1, "k": 4, "alpha": ramp}),
    Case("look_sam", {"rho": 0.1, "k": 3, "push": "paper"}, ADAMW),
    Case("look_sam", {"rho": 0.3, "k": 4}, PLAIN, "Quadratic"),
    Case("look_layer_sam", {"rho": 0.1}),
    Case("look_layer_sam", {"rho": 0.1, "k": 3, "alpha": 0.3, "layerwise": "trust"}, ADAMW),
    Case("look_layer_sam", {"rho": 0.02, "k": 4, "layerwise": "paper", "push": "paper"}),
    Case("look_layer_sam", {"rho": 0.02, "k": 4, "push": "natural", "layerwise": "paper"}, ADAMW),
    Case("adasam", {"rho": 0.05}, AMSGRAD),
    Case("adasam", {"rho": 0.2}, DECAYED),
    Case("adasam", {"rho": 0.2}, AMSGRAD, "Quadratic"),
    Case("gsam", {"rho": 0.1}),
    Case("gsam", {"rho": 0.1, "alpha": 0.1}, ADAMW),
    Case("gsam", {"rho": ramp}, NESTEROV),
    Case("fsam", {"rho": 0.1}),
    Case("fsam", {"rho": 0.1, "sigma": 0.5, "decay": 0.6}, ADAMW),
    Case("wsam", {"rho": 0.05, "gamma": 0.6}),
    Case("wsam", {"rho": 0.05, "gamma": 0.5}, PLAIN),
    Case("wsam", {"rho": 0.05}, ADAMW),
    Case("aesam", {"rho": 0.1, "total_steps": STEPS}),
    Case("aesam", {"rho": 0.1, "total_steps": STEPS, "lambda_1": -2.0, "lambda_2": 0.5, "decay": 0.7}, ADAMW),
    Case("sam_on", {"rho": 0.3}),
    Case("sam_on", {"rho": 0.3}, ADAMW),
    Case("late_sam", {"rho": 0.1, "start": 15, "stop": 22}),
    Case("late_sam", {"rho": 0.1, "start": 0, "stop": 1}, ADAMW),
    Case("tail_sam", {"rho": 0.3, "lr_max": 0.2, "warmup": 10}),
    Case("tail_sam", {"rho": 0.3, "lr_max": 1.0, "begin": 0.5, "ramp": 0.9}, NESTEROV),
    Case("sl_sam", {"rho": 0.1}),
    Case("sl_sam", {"rho": 0.1, "s": 0.5, "seed": 3}, NESTEROV),
    Case("sl_sam", {"rho": 0.1, "s": 0.4, "step_size": 0.1, "p_min": 0.05}, ADAMW),
    Case("sl_sam", {"rho": 0.1, "s": 0.4, "level": "block", "step_size": 0.01}, ADAMW),
    Case("sl_sam", {"rho": 0.1, "s": 1.0}, AMSGRAD),
    Case("msam", {"rho": 0.3}),
    Case("msam", {"rho": 0.3, "sign": 1}, NESTEROV),
    Case("msam", {"rho": ramp}, ADAMW),
    Case("msam", {"rho": 0.1}, AMSGRAD),
    Case("msam", {"rho": 0.1, "decay": 0.8, "sign": 1}, PLAIN),
    Case("msam", {"rho": 0.3, "decay": 0.9}, PLAIN, "Quadratic"),
    Case("s2_sam", {"rho": 0.1}),
    Case("s2_sam", {"rho": ramp}, ADAMW),
    Case("s2_sam", {"rho": 0.3}, PLAIN, "Quadratic"),
    Case("rwp", {"rho": 0.1}),
    Case("rwp", {"rho": ramp, "gamma": 0.5, "seed": 3}, ADAMW),
    Case("arwp", {"rho": 0.1, "eta": 1.0}),
    Case("arwp", {"rho": ramp, "eta": 10.0, "decay": 0.5, "gamma": 0.5, "seed": 3}, ADAMW),
    Case("esam", {"rho": 0.1}),
    Case("esam", {"rho": 0.3, "beta": 1.0, "gamma": 0.25}, NESTEROV),
    Case("esam", {"rho": ramp, "beta": 0.5, "seed": 3}, ADAMW),
    Case("esam", {"rho": 0.1, "gamma": 1.0}, PLAIN),
    Case("le_sam", {"sigma": 0.1}),
    Case("le_sam", {"sigma": ramp, "rho": 0.2}, ADAMW),
    Case("muon_sam", {"rho": 0.05}),
    Case("muon_sam", {"rho": ramp, "iterations": None}, ADAMW),
    Case("k_sam", {"rho": 0.1}),
    Case("k_sam", {"rho": ramp, "samples": 3, "descent": None}, ADAMW),
    Case("k_sam", {"rho": 0.3, "samples": 0.5, "descent": 0.75}, NESTEROV),
]
