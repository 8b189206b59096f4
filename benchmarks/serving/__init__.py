"""The worker under load and under fire, with a simulated accelerator."""
