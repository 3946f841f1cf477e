"""What the saliency maps are worth, measured: where they lie, whether the network agrees, what makes them.

Every measure takes networks by name (all on one device, in evaluation mode, with the same front end) and `Probes`,
calls `progress(done, total)` as it goes, and returns frozen dataclasses of plain numbers, one for each network and
whatever else their fields say. `dataclasses.asdict` and `training.evaluation.results.without_nan` make JSON of them.
Values for each utterance are in the order of `Probes.clips`, the same for every network and seed, so they can be
paired; NaN marks an utterance without a value. Mixtures depend on the utterance and the condition only
(`training.evaluation.conditions`), so measuring one network at a time gives the same figures as measuring all at once.

==============  ====================================================================================================
module          what it has
==============  ====================================================================================================
probes          `choose_probes`: utterances to measure on, the speakers in turn
deletion        `deletion_indices`: whether maps keep off the bins that the interference dominates, and how far the maps
                of the clean utterances keep off them anyway; with the rank of the true speaker in the same mixtures
localisation    `localisation`: target, interferer and target in turn; area under the ROC curve of the maps
faithfulness    `faithfulness`: deletion and insertion curves (`curves`), for `METHODS` and for `FUSIONS` of stages
ranking         `rank`, `recommend`: which methods are the most faithful, and which stages `fused` should take
randomisation   `randomisation`: likeness with the original maps while the weights are drawn anew, part by part
spectrum        `map_spectra`: the grid that strided convolutions leave in the maps, at either tap of each stage
attributions    the maps themselves: LayerCAM and its fusions, Grad-CAM++, gradient x input, energy, chance
==============  ====================================================================================================
"""
