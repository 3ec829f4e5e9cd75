"""Bugs of the library to plant, and those of the commands beside them."""

from __future__ import annotations

from mutant import Mutant
from planted_commands import COMPARE, FIGURES, FINETUNE, RESUME

COMBINE, RECOMMENDED, REUSE, SPECTRAL = (
    f"tests/test_{name}.py" for name in ("combine", "recommended", "reuse", "spectral")
)
SKIPPING = "tests/situations/test_skipping.py"
LEFT = """            yield
        finally:
            self.looking = False
"""  # at the end of a pass without a trace


def raising(there: str) -> str:
    """The same, where a pass that raises has ``there`` put back in place of what was noted at its start."""
    broken = f"        except BaseException:\n            before = ({there})\n            raise\n"
    return LEFT.replace("        finally:\n", f"{broken}        finally:\n")


HEART = [
    Mutant(
        "an error is held by its own traceback, and holds the batch",
        "raise RuntimeError(OUTSIDE) from error\n",
        "raise RuntimeError(OUTSIDE) from error\n    raise error\n",
        "tests/situations/test_outside_broken_off.py -k free_at_once",
    ),
    Mutant(
        "a file that a loss has closed is put back", "isinstance(each, IOBase) and each.closed", "False",
        "tests/situations/test_changed.py -k closed",
    ),
    Mutant(
        "WSAM's correction takes the learning rate of the first group",
        'parameters.group_of(entry)["lr"]', 'parameters.optimizer.param_groups[0]["lr"]',
        f"{COMBINE} -k wsam_by_hand",
    ),
    Mutant(
        "the correction of a second backward overwrites the first's",
        "tensor if earlier is None else earlier.add_(tensor)", "tensor", f"{COMBINE} -k wsam_by_hand",
    ),
    Mutant(
        "perturbed() leaves what its direction remembers",
        "self.climb.up(grads, scale, None, {}, None, Draft())",
        "self.climb.up(grads, scale, None, {}, None, self.draft)",
        "tests/test_perturbation.py -k perturbed_leaves_nothing",
    ),
    Mutant(
        "perturbed() leaves buffers moved when it raises",
        LEFT, raising("before[0], self.watch.start(), before[2]"),
        "tests/test_perturbation.py -k brings_every_buffer_back",
    ),
    Mutant(
        "a look that raises leaves statistics moved",
        LEFT, raising("before[0], self.watch.start(), before[2]"), "tests/test_perturbation.py -k look_that_raises",
    ),
    Mutant(
        "a look that raises leaves the generators moved",
        LEFT, raising("self.draws(), *before[1:]"), "tests/test_perturbation.py -k look_that_raises",
    ),
    Mutant(
        "a kept average drops parameters without a gradient",
        '{"average": old | fresh}', '{"average": fresh}', "tests/test_ahead_memory.py -k without_a_gradient_does",
    ),
    Mutant(
        "Flat-LoRA's noise does not depend on the layer",
        'f"flat_lora:{layer.name}"', '"flat_lora"', "tests/lora/test_flat.py -k noise_of_its_own",
    ),
    Mutant(
        "ESAM draws the same weights at every step",
        "thin_(eps.values(), now.ascent.beta, now.seed, now.step)",
        "thin_(eps.values(), now.ascent.beta, now.seed, 0)", "tests/test_thin.py -k subset_of_its_own",
    ),
]  # fmt: skip

STEPS = [
    Mutant(
        "a resumed training stands at step 0 again", 'sharp.step, sharp.memory = state["step"], memory',
        "sharp.memory = memory", f"{RECOMMENDED} -k ramp",
    ),
    Mutant(
        "a radius is that of the step before", "ascent.radius(step, g)", "ascent.radius(max(step - 1, 0), g)",
        f"{RECOMMENDED} -k ramp",
    ),
    Mutant(
        "a step that skips is not counted", "self.step += done", "self.step += done and self.last.ascended",
        f"{SKIPPING} -k exchanged_meanwhile",
    ),
    Mutant(
        "a step known to skip is decided by what held the step before",
        "self._present.begin(now)\n        skips =", "skips =", f"{SKIPPING} -k exchanged_meanwhile",
    ),
    Mutant(
        "a step known to skip leaves its decision to the next",
        "self.draft.left = True\n        if self._parameters.rest:", "if self._parameters.rest:",
        f"{SKIPPING} -k abandoned",
    ),
    Mutant(
        "a step known to skip lends its mark to a later one",
        "self.lookout.within, self.passes.mark = False, None", "self.lookout.within = False", f"{SKIPPING} -k mark",
    ),
    Mutant(
        "a step known to skip takes a loss that is new", "skips and self._tracing.knows(closure) and", "skips and",
        f"{SKIPPING} -k new_loss",
    ),
    Mutant(
        "a step known to skip takes a group that it does not know", " and not self._parameters.regrouped", "",
        f"{SKIPPING} -k cannot_be",
    ),
    Mutant(
        "the sum of gradients leaves the loop's flat buffer",
        "else _sum(grad, param.grad)\n        _put_into(slices)\n", "else _sum(grad, param.grad)\n",
        "tests/test_gradient.py -k slices",
    ),
    Mutant(
        "after an error the gradients have left the loop's flat buffer",
        "            _put_into(slices)\n            raise", "            raise", "tests/test_gradient.py -k slices",
    ),
    Mutant(
        "weights that a forward binds to other memory stay at w + eps",
        "if self._rows is not None and not self._rows.in_place():", "if False:", "tests/test_backup.py -k other_memory",
    ),
    Mutant(
        "pieces of a vector are those of the memory before", "return same and _at(weights) == self._at", "return same",
        "tests/test_backup.py -k lies_elsewhere",
    ),
    Mutant(
        "a normal number that Python keeps is not seen", 'memory.raw if generator.gauss_next is None else b""',
        "memory.raw", "tests/situations/test_generators.py -k kept_normal",
    ),
    Mutant(
        "a normal number that NumPy keeps is not seen",
        "self._numbers.raw + self._body.raw if", "self._numbers.raw if",
        "tests/situations/test_generators.py -k kept_normal",
    ),
    Mutant(
        "the previous gradient keeps its loss scale", "            scale_(fresh.values(), 1 / scale)\n        return {",
        "            pass\n        return {", "tests/test_ahead_memory.py -k loss_scale",
    ),
]  # fmt: skip

PARTS = [
    Mutant(
        "a ramp ends one step late", "max(1, round(ramp * total_steps))", "round(ramp * total_steps) + 1",
        f"{RECOMMENDED} -k ramp",
    ),
    Mutant(
        "LookSAM's guard lets through what the gradient objects to",
        "inner(g_v, g).to(pull.device) < 0", "inner(g_v, g).to(pull.device) > 0", f"{REUSE} -k guard_stops",
    ),
    Mutant(
        "LookSAM's guard takes the longer push",
        "torch.minimum(natural, paper)", "torch.maximum(natural, paper)", f"{REUSE} -k reuse_over_two_steps",
    ),
    Mutant(
        "LookSAM's natural push wants an alpha", 'not names or (self.push != "natural" and alpha == 0)',
        "not names or alpha == 0", f"{REUSE} -k alpha_0_leaves",
    ),
    Mutant(
        "MuonSAM divides a small gradient in 16 bits",
        "(tensor.to(wide(tensor.dtype)) * ratio(1.0, norm([as_real(tensor)])))",
        "(tensor * ratio(1.0, norm([as_real(tensor)])).to(tensor.dtype))", f"{SPECTRAL} -k few_bits",
    ),
    Mutant(
        "MuonSAM's iteration of a complex matrix lacks the conjugate", "gram = x @ x.mH", "gram = x @ x.mT",
        f"{SPECTRAL} -k complex",
    ),
    Mutant(
        "the noise of all tensors is the same", 'f"noise:{name}"', '"noise"',
        "tests/test_noise.py -k seed_step_and_name",
    ),
    Mutant(
        "the easiest samples are chosen", "(-m if falls else m).topk", "(m if falls else -m).topk",
        "tests/test_hardest.py -k chosen_samples",
    ),
    Mutant(
        "a budget of loss makes a step longer, too", "(budget / rise).clamp(max=1.0)", "budget / rise",
        "tests/test_loss_budget.py",
    ),
    Mutant(
        "MSAM's kept average has no sign", 'memory.get("average", {}), params, self.sign)',
        'memory.get("average", {}), params)',
        "tests/test_ahead.py -k only_pass",
    ),
    Mutant(
        "a learning rate some roundings below its highest is below it",
        "math.isclose(lr, self.lr_max, rel_tol=ROUNDED)", "lr == self.lr_max", "tests/test_curves.py -k follow_lr",
    ),
    Mutant(
        "AE-SAM's level goes on beyond the length of the training",
        "min(t / self.total_steps, 1.0)\n        level", "t / self.total_steps\n        level",
        "tests/test_schedule.py -k beyond_the_length",
    ),
    Mutant(
        "of two equal gradients nBAR lets the other factor grow",
        'grows = torch.where(x >= y, 1.0, -1.0) if rule == "nbar"',
        'grows = torch.where(x > y, 1.0, -1.0) if rule == "nbar"', "tests/lora/test_bar.py -k decides_who_grows",
    ),
    Mutant(
        "batch normalisation below the first level is not seen",
        "isinstance(module, _BatchNorm) for module in model.modules()",
        "isinstance(module, _BatchNorm) for module in model.children()", f"{RECOMMENDED} -k sam_on_four_samples",
    ),
]  # fmt: skip

LOOPS = [
    Mutant(
        "the decay of Adadelta is the radius",
        "[_has_own_rho(s.optimizer) for s in self.steppers]", "[False for _ in self.steppers]",
        "tests/situations/test_rho_of_the_optimizer.py",
    ),
    Mutant(
        "a generator of a module draws other numbers in the second pass",
        "self.generators.append(value)", "pass", "tests/situations/test_generators.py -k need_no_naming",
    ),
    Mutant(
        "quantised weights that are buffers are copied in the first steps",
        "False: max(trained, ROOM)}", 'False: float("inf")}', "tests/situations/test_late.py -k written_late",
    ),
    Mutant(
        "torch in a folder of its own is the user's code",
        "root in _ALWAYS_INSTALLED or root in", "root in", "tests/test_reach.py -k wherever",
    ),
    Mutant(
        "an interrupt while a pass is closed leaves a hook on all modules",
        "self._disarm()  # what an interrupted pass left", "pass",
        "tests/situations/test_outside_broken_off.py -k interrupt_while",
    ),
    Mutant(
        "a hook that an interrupt has left on all modules waits for the method's next step",
        "it is None or not it._goes_on()", "it is None",
        "tests/situations/test_outside_broken_off.py -k interrupt_while",
    ),
    Mutant(
        "a distributed checkpoint is loaded without what a schedule remembers",
        '"schedule": sharp.schedule.blank(),', '"schedule": {},', "tests/loops/test_dcp.py -k go_on",
    ),
    Mutant(
        "a search begins at the largest radius",
        "[r for r in radii if r <= start]", "[*radii]", "tests/diagnostics/test_trials.py -k keeps_enough",
    ),
    Mutant(
        "gradients of earlier micro-batches are summed over the ranks, not averaged",
        "    flat /= dist.get_world_size(group)\n", "", "tests/loops/test_ddp.py -k accumulation",
    ),
    Mutant(
        "weights stay moved after an error in the only pass of a method",
        "        self._saved.back()\n", "        if not broken:\n            self._saved.back()\n",
        "tests/methods/test_contract.py -k exact_after_an_error",
    ),
    Mutant(
        "a metric in Lightning counts the second pass of a step too", "each[:] = content", "pass",
        "tests/integrations/test_lightning.py -k long_list",
    ),
    Mutant(
        "a checkpoint that was not written to its end is resumed from",
        "isdigit() and _is_whole(p)]", "isdigit()]", f"{RESUME} -k while_it_writes",
    ),
]  # fmt: skip

LOOKS = [
    Mutant(
        "a loss plane has its columns for rows", "tuple(sheet.loss(x, y) for x in grid) for y in grid)",
        "tuple(sheet.loss(x, y) for y in grid) for x in grid)", "tests/diagnostics/test_plane.py -k on_paper",
    ),
    Mutant(
        "the worst rise is that of the last climb", "[max(self._climb(group, first, rho, climbs)) - here",
        "[list(self._climb(group, first, rho, climbs))[-1] - here", "tests/diagnostics/test_sharpness.py -k highest",
    ),
    Mutant(
        "the trace of the Hessian does not follow the seed", "num_matvecs=probes, seed=seed",
        "num_matvecs=probes, seed=0", "tests/diagnostics/test_hessian.py -k follow_the_seed",
    ),
    Mutant(
        "the masks of a look that finds a radius are others than the passes'",
        "            again()\n            look.run()", "            look.run()",
        "tests/diagnostics/test_curve.py -k draws_the_masks",
    ),
]  # fmt: skip

RECORDED = [
    Mutant(
        "a recorded look is that of a module's earlier attributes",
        "if not _identical(self.held, other.held)", "if False", "tests/test_recorded_anew.py -k earlier_recording",
    ),
    Mutant(
        "a recorded look is that of numbers that the loss function read earlier",
        "if not _alike(self.read, other.read)", "if False", "tests/test_recorded_anew.py -k earlier_recording",
    ),
    Mutant(
        "a recorded look begins from what its warm-up has written",
        "            state.back()\n            generators.set()", "            generators.set()",
        "tests/test_recorded.py -k a_state_that",
    ),
    Mutant(
        "a recorded look draws what its warm-up left to draw",
        "            state.back()\n            generators.set()", "            state.back()",
        "tests/test_recorded.py -k numbers_are",
    ),
    Mutant(
        "the next replay writes over the gradients that a replay left",
        "copies = [torch.empty_like(p) for p, _ in new]", "copies = [grad for _, grad in new]",
        "tests/test_recorded.py -k not_written_over",
    ),
    Mutant(
        "a look that is not finite leaves NaN on a GPU",
        "[t.view(bits) for t in some], keep.to(device, bits)", "some, keep.to(device)",
        "tests/test_algebra.py -k by_its_bits",
    ),
]  # fmt: skip

MUTANTS = [*COMPARE, *FIGURES, *FINETUNE, *HEART, *STEPS, *PARTS, *LOOPS, *LOOKS, *RECORDED]
