"""Neural ordinary differential equations, a baseline without an equilibrium."""
