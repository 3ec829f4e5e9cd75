"""Base optimizers that no kept library has in the needed form."""

from steppe.optim.amsgrad import AMSGrad

__all__ = ["AMSGrad"]
