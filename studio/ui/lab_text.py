"""The texts of the Lab; those of settings lie with the settings, in `studio.lab`."""

from studio.ui.lab_latents_text import LATENTS_TEXT, LATENTS_WORDS

LAB_TEXT = LATENTS_TEXT | {
    "tab.lab": "Lab",
    "lab.info": (
        "See how diffusion works on the model that is chosen at the top of the page. Everything here is computed when you press "
        "Run; `python -m studio lab` gives the same numbers."
    ),
    "lab.run": "Run",
    "lab.stop": "Stop",
    "lab.take": "Use these settings in Generate",
    "lab.taken": "Taken over from the Lab.",
    "lab.none": "Press Run.",
    "lab.empty": "empty: none",
    "lab.film": "Step of the film",
    "lab.table": "Numbers",
    "lab.log": "{name} (log10)",
    "lab.panel.forward": "Forward process",
    "lab.text.forward": (
        "A picture $x_0$ is mixed with noise: $x_t=\\sqrt{\\bar\\alpha_t}\\,x_0+\\sqrt{1-\\bar\\alpha_t}\\,\\epsilon$ at once, or in "
        "$t$ small steps $x_i=\\sqrt{1-\\beta_i}\\,x_{i-1}+\\sqrt{\\beta_i}\\,\\epsilon_i$; both end in the same statistics, because "
        "$\\bar\\alpha_t=\\prod_i(1-\\beta_i)$ ([Ho et al. 2020](https://arxiv.org/abs/2006.11239), equations 2 and 4). Flow matching "
        "goes straight, $x_s=(1-s)\\,x_0+s\\,\\epsilon$ ([Lipman et al. 2022](https://arxiv.org/abs/2210.02747)); the cosine schedule "
        "is of [Nichol and Dhariwal 2021](https://arxiv.org/abs/2102.09672), zero terminal SNR of "
        "[Lin et al. 2023](https://arxiv.org/abs/2305.08891)."
    ),
    "lab.plot.forward.alpha_bar": "How much of the picture is left",
    "lab.plot.forward.log_snr": "Signal to noise",
    "lab.plot.forward.sigma": "How much noise there is",
    "lab.table.forward.statistics": "What is in x at step t: in theory, and measured in both",
    "lab.film.forward.forward": "The picture on its way to noise",
    "lab.panel.reverse": "Reverse process",
    "lab.text.reverse": (
        "From noise back to a picture: at each step the model says what is noise in $x_t$, from which follows what it takes the "
        "picture to be, $\\hat x_0=(x_t-\\sqrt{1-\\bar\\alpha_t}\\,\\hat\\epsilon)/\\sqrt{\\bar\\alpha_t}$, and the next $x$ "
        "([Ho et al. 2020](https://arxiv.org/abs/2006.11239), algorithm 2 and equation 15). It may say $\\epsilon$, $x_0$ or "
        "$v=\\sqrt{\\bar\\alpha_t}\\,\\epsilon-\\sqrt{1-\\bar\\alpha_t}\\,x_0$ "
        "([Salimans and Ho 2022](https://arxiv.org/abs/2202.00512), appendix D): one follows from another, but for rounding, which "
        "grows where it is divided by a small number."
    ),
    "lab.plot.reverse.distance": "How far it is from the result",
    "lab.plot.reverse.conversions": "Error of saying it another way and back",
    "lab.table.reverse.moments": "Levels, and the predicted noise: mean 0 and deviation 1 if it is noise",
    "lab.table.reverse.conversions": "Relative errors of the round trips, in float32",
    "lab.film.reverse.reverse": "From noise to a picture",
    "lab.panel.samplers": "Samplers",
    "lab.text.samplers": (
        "All go from the same noise. The probability-flow ODE $dx=[f-\\tfrac12 g^2\\nabla\\log p]\\,dt$ leads to one picture, the SDE "
        "adds noise on the way ([Song et al. 2021](https://arxiv.org/abs/2011.13456), equations 6 and 13). DDIM without eta is Euler's "
        "method for the ODE ([Song et al. 2021](https://arxiv.org/abs/2010.02502), section 4.3), with eta 1 it is DDPM; DPM-Solver++ "
        "takes higher orders in $\\log$ SNR, here with Karras' steps ([Lu et al. 2022](https://arxiv.org/abs/2211.01095); SDE: its "
        "second order for the SDE); EDM is Heun's method with the same steps "
        "([Karras et al. 2022](https://arxiv.org/abs/2206.00364), algorithm 1); the flow's go along the straight "
        "path, also "
        "with a model of diffusion."
    ),
    "lab.plot.samplers.distance": "Distance to the reference, by steps",
    "lab.plot.samplers.cost": "Distance to the reference, by calls of the model",
    "lab.plot.samplers.agreement": "How much of the prompt is shown",
    "lab.table.samplers.samplers": "Relative distance of the latents to the reference, agreement, time",
    "lab.film.samplers.samplers": "The first seed, by number of steps",
    "lab.panel.guidance": "Guidance",
    "lab.text.guidance": (
        "At each step the model is asked without and with the prompt, and goes $w$ times the difference: "
        "$\\hat\\epsilon=\\epsilon_\\varnothing+w\\,(\\epsilon_c-\\epsilon_\\varnothing)$ "
        "([Ho and Salimans 2022](https://arxiv.org/abs/2207.12598); $w=0$ is without the prompt, $w=1$ with it alone). More of it "
        "shows more of the prompt and less variety. Rescale takes back the contrast "
        "([Lin et al. 2023](https://arxiv.org/abs/2305.08891), "
        "section 3.4); guidance in a part of the steps keeps variety "
        "([Kynkäänniemi et al. 2024](https://arxiv.org/abs/2404.07724)); outside of it, $w=1$."
    ),
    "lab.plot.guidance.agreement": "Prompt shown, and by chance",
    "lab.plot.guidance.diversity": "How different the seeds' pictures are",
    "lab.plot.guidance.tradeoff": "One against the other",
    "lab.table.guidance.guidance": "Agreement, diversity and contrast",
    "lab.film.guidance.guidance": "The same seeds, by guidance",
}

WORDS = LATENTS_WORDS | {  # names of quantities and of what pictures show; other names are shown as they are
    "timestep": "step t",
    "alpha_bar": "alpha-bar",
    "log_snr": "ln SNR",
    "given": "picture",
    "closed": "in closed form",
    "stepwise": "step by step",
    "closed_alpha": "closed: signal",
    "closed_sigma": "closed: noise",
    "stepwise_alpha": "stepwise: signal",
    "stepwise_sigma": "stepwise: noise",
    "alpha": "signal",
    "sigma": "noise",
    "model": "this model",
    "distance": "distance",
    "x_t": "x at step t",
    "predicted_x0": "predicted x0",
    "predicted_noise": "predicted noise",
    "guidance": "guidance w",
    "tradeoff": "guidance",
    "evaluations": "calls of the model",
    "noise_mean": "mean of noise",
    "noise_std": "deviation of noise",
    "scaled_linear": "scaled linear",
    "zero_terminal_snr": "zero terminal SNR",
}
