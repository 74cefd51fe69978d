"""What several training methods share: base classes, differentiable Lipschitz bounds."""
