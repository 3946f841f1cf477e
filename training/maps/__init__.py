"""What the saliency maps are worth, measured: where they lie, whether the network agrees, what makes them.

Every measure takes networks by name (all on one device, in evaluation mode, with the same front end) and `Probes`,
calls `progress(done, total)` as it goes, and returns frozen dataclasses of plain numbers, one for each network and
whatever else their fields say. `dataclasses.asdict` and `training.results.without_nan` make JSON of them. Values for
each utterance are in the order of `Probes.clips`, the same for every network and seed, so they can be paired; NaN marks
an utterance without a value. Mixtures depend on the utterance and the condition only (`training.conditions`), so
measuring one network at a time gives the same figures as measuring all at once.

=====================  ==============================================================================================
module                 function -> result
=====================  ==============================================================================================
probes                 choose_probes(corpus, speakers, limit=60, split="test") -> Probes: the speakers in turn, so that
                       each is heard equally often
deletion               deletion_indices(networks, probes, conditions, progress) -> tuple[DeletionIndices, ...]
                       for each network and condition: by map ("s1".."s4", "fused", "s4-raw", and the control "energy")
                       the index of each utterance, the index that the map of the *clean* utterance has on the same
                       bins, and the rank of the true speaker
localisation           localisation(networks, probes, progress) -> tuple[Localisation, ...]
                       target, interferer, target in turn; area under the ROC curve of each utterance, by map ("s1"
                       .."s4", "fused", "grad-cam++", "gradient-x-input") and by control ("random", "energy",
                       "fused of another speaker"), frame by frame and bin by bin
faithfulness           faithfulness(networks, probes, conditions, methods, progress) -> tuple[Faithfulness, ...]
                       for each network, condition and method: mean deletion and insertion curve, area of each
                       utterance, of the probability and of the score. METHODS are the 8 compared, FUSIONS the 15
                       fusions of stages
ranking                rank(results) -> tuple[Ranked, ...], best first, over all networks and conditions in `results`,
                       with paired intervals; recommend(results) -> the stages that `fused` should take
randomisation          randomisation(networks, probes, progress) -> tuple[Randomised, ...]
                       for each network, step of the cascade (STEPS, "head" to "stem") and map: similarity with the
                       original map, by rank correlation and SSIM, of each utterance
spectrum               map_spectra(networks, probes, progress) -> tuple[MapSpectrum, ...]
                       for each network, stage and tap: mean power spectrum, and how far the grid stands out of it
figures                pictures of the above as matplotlib figures
=====================  ==============================================================================================
"""
