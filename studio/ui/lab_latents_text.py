"""The texts of the Lab's panels about latents, ranking and two dimensions; `lab_text` joins them with the others."""

LATENTS_TEXT = {
    "lab.clear": "Clear",
    "lab.points": "{number} points",
    "lab.play": "Play",
    "lab.square": "Particles, how dense the points with noise are, and where the network would take a particle",
    "lab.along": "The density along x over time, and the ways of forty particles",
    "lab.particles": (
        "Above: particles, the exact density of points with as much noise (colour), and where the network would take a particle "
        "(arrows). Below: the density along x from noise (left) to points (right), and the ways of forty particles. Where variance "
        "explodes, all is drawn smaller by sqrt(1 + sigma²)."
    ),
    "lab.panel.latents": "Latent space",
    "lab.text.latents": (
        "A latent model does not draw pixels: an autoencoder makes a picture $x$ into latents $z=(E(x)-m)\\cdot s$ with fewer numbers, "
        "scaled by $s$ so that they have about the deviation 1 of the noise, and back, $\\hat x=D(z/s+m)$ "
        "([Rombach et al. 2022](https://arxiv.org/abs/2112.10752), section 3.1). What it loses, "
        "$\\mathrm{PSNR}=10\\log_{10}(255^2/\\mathrm{MSE})$, no sampler brings back. Only the autoencoder is loaded."
    ),
    "lab.plot.latents.values": "The values of the latents, beside the normal distribution of noise",
    "lab.table.latents.quality": "What is lost",
    "lab.table.latents.channels": "The channels, as the denoiser sees them",
    "lab.film.latents.check": "Encoded and decoded again; the difference is shown four times as strong",
    "lab.film.latents.channels": "The channels: black is -3, white is 3",
    "lab.panel.interpolation": "Interpolation",
    "lab.text.interpolation": (
        "Between two pictures lie others: their noise $\\epsilon_1,\\epsilon_2$ is mixed on a great circle, "
        "$\\mathrm{slerp}(f)=\\frac{\\sin((1-f)\\omega)}{\\sin\\omega}\\epsilon_1+\\frac{\\sin(f\\omega)}{\\sin\\omega}\\epsilon_2$ "
        "([Shoemake 1985](https://doi.org/10.1145/325334.325242)), and so is what the model reads of two prompts. A straight "
        "line, $(1-f)\\epsilon_1+f\\epsilon_2$, has only $\\sqrt{(1-f)^2+f^2}$ of the length that noise has, and the "
        "model, which never saw such, draws a washed-out picture ([Song et al. 2021](https://arxiv.org/abs/2010.02502), section 5.3)."
    ),
    "lab.plot.interpolation.length": "The length of the noise along both ways",
    "lab.plot.interpolation.agreement": "How well the pictures show the prompts",
    "lab.table.interpolation.parts": "Along the way",
    "lab.film.interpolation.way": "From the first to the last",
    "lab.panel.inversion": "DDIM inversion",
    "lab.text.inversion": (
        "DDIM without noise is an equation that can be gone backwards: "
        "$x_{t+1}=\\sqrt{\\bar\\alpha_{t+1}}\\,\\hat x_0(x_t)+\\sqrt{1-\\bar\\alpha_{t+1}}\\,\\epsilon_\\theta(x_t)$ leads from a "
        "picture to noise from which it can be drawn again ([Song et al. 2021](https://arxiv.org/abs/2010.02502), section 4.3). Each "
        "step takes $\\epsilon_\\theta(x_t)$ for that of $x_{t+1}$, so that the error falls as steps get smaller, and guidance "
        "breaks it ([Mokady et al. 2022](https://arxiv.org/abs/2211.09794)). With another prompt the same noise draws an edited "
        "picture. Models that follow a flow go backwards with Euler steps."
    ),
    "lab.plot.inversion.error": "What is lost of the latents",
    "lab.plot.inversion.psnr": "What is left of the picture, beside what the autoencoder keeps",
    "lab.table.inversion.steps": "There and back",
    "lab.film.inversion.inversion": "The picture, its noise, and what is drawn from there",
    "lab.panel.ranking": "Ranking",
    "lab.text.ranking": (
        "Draw several, keep the best: what reads both pictures and words says how well each fits. With a CLIP in models/scorers it "
        "is CLIPScore, $2.5\\cdot\\max(\\cos(c,v),0)$ ([Hessel et al. 2021](https://arxiv.org/abs/2104.08718), equation 1); for the "
        "demo model a judge counts how much of what the prompt says is there. The best of $n$ grows with $n$ "
        "([Ramesh et al. 2021](https://arxiv.org/abs/2102.12092), section 2.6). The button below takes the seed of the best."
    ),
    "lab.plot.ranking.score": "The best of the first n, and the mean of all",
    "lab.table.ranking.ranking": "The ranking",
    "lab.film.ranking.ranking": "The best first",
    "lab.panel.wordless": "Without words",
    "lab.text.wordless": (
        "Small models that **Train** makes from nothing, drawn step by step: DDPM "
        "([Ho et al. 2020](https://arxiv.org/abs/2006.11239)) and its shortcut DDIM; score models, "
        "$s(x,\\sigma)=\\nabla\\log p_\\sigma(x)$, whose predictor goes "
        "$x\\leftarrow x+(\\sigma_i^2-\\sigma_{i-1}^2)\\,s+\\sqrt{\\sigma_i^2-\\sigma_{i-1}^2}\\,z$ and whose corrector "
        "walks by Langevin's $x\\leftarrow x+\\epsilon s+\\sqrt{2\\epsilon}\\,z$ "
        "([Song et al. 2021](https://arxiv.org/abs/2011.13456), algorithm 2); EDM's "
        "([Karras et al. 2022](https://arxiv.org/abs/2206.00364)); and classes, by a DiT whose adaLN-Zero blocks "
        "begin as the identity ([Peebles and Xie 2022](https://arxiv.org/abs/2212.09748)). Train one with the presets "
        "`unconditional-shapes`, `-ve`, `-edm`, `-dit`, then choose it as the model in **Generate**."
    ),
    "lab.plot.wordless.distance": "How far the first picture is from the result",
    "lab.plot.wordless.deviation": "How large its numbers are",
    "lab.table.wordless.drawn": "What it took",
    "lab.film.wordless.wordless": "From noise to pictures",
    "lab.panel.plane": "Two dimensions",
    "lab.text.plane": (
        "A network of 11,000 weights learns where points $x_0$ lie, from $x=a\\,x_0+b\\,\\epsilon$: **DDPM** asks for the noise, "
        "$\\|\\epsilon_\\theta(x,t)-\\epsilon\\|^2$ ([Ho et al. 2020](https://arxiv.org/abs/2006.11239)); **score matching** for the "
        "slope of the density, $\\|\\sigma s_\\theta(x,\\sigma)+\\epsilon\\|^2$, with noise of exploding variance "
        "([Song and Ermon 2019](https://arxiv.org/abs/1907.05600), [Song et al. 2021](https://arxiv.org/abs/2011.13456)); **flow "
        "matching** for the velocity of straight ways, $\\|v_\\theta(x,t)-(\\epsilon-x_0)\\|^2$ "
        "([Lipman et al. 2023](https://arxiv.org/abs/2210.02747)). Then particles follow it from noise, with diffusers' DDPM, "
        "predictor-corrector and Euler steps. The energy distance $2E|X-Y|-E|X-X'|-E|Y-Y'|$ "
        "([Székely and Rizzo 2013](https://doi.org/10.1016/j.jspi.2013.03.018)) is 0 where particles lie as the points do. The model "
        "at the top of the page is not asked."
    ),
    "lab.plot.plane.energy": "How far the particles are from the points",
    "lab.plot.plane.loss": "The loss while the network learns",
    "lab.table.plane.quality": "Energy distance: at the start, at the end, and of two draws of the points themselves",
}

LATENTS_WORDS = {
    "score_matching": "score matching",
    "flow_matching": "flow matching",
    "decoded": "decoded again",
    "psnr": "PSNR in dB",
    "worst": "worst of 255 levels",
    "times_fewer": "times fewer numbers",
    "normal": "normal distribution",
    "length": "length of the noise",
    "other_prompt": "with the other prompt",
    "latent_error": "error of the latents",
    "noise_mean": "mean of the noise",
    "noise_deviation": "deviation of the noise",
    "regenerated": "drawn again",
    "best_so_far": "best of the first n",
    "ddpm": "DDPM",
    "gaussians": "eight Gaussians",
    "drawn": "drawn by hand",
    "way": "part of the way",
    "energy_start": "start",
    "energy_end": "end",
    "energy_data": "points",
    "training_loss": "loss",
}
