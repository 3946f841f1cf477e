"""Quality of saliency maps: deletion index, localisation, faithfulness, randomisation and grid artefacts.

Every measure takes `Networks` and `Probes`, calls `progress(done, total)` after each batch, and returns frozen
dataclasses of plain numbers, at least one per network. Values per utterance are in the order of `Probes.clips`, the
same for every network and seed, so they can be paired; NaN marks an utterance without a value. Mixtures depend on the
utterance and the condition only (`training.evaluation.conditions`), so measuring one network at a time gives the same
figures as measuring all at once.

==============  ====================================================================================================
module          content
==============  ====================================================================================================
probes          `choose_probes`: utterances to measure on, round-robin over the speakers
deletion        `deletion_indices`: saliency on the bins that the interference dominates, for the maps of the mixtures
                and for those of the clean utterances; with the rank of the true speaker in the same mixtures
localisation    `localisation`: target, interferer and target in turn; area under the ROC curve of the maps
faithfulness    `faithfulness`: deletion and insertion curves (`curves`), for `METHODS` and for `FUSIONS` of stages
ranking         `rank`, `recommend`: the methods by faithfulness, and the most faithful fusion of stages
randomisation   `randomisation`: similarity to the original maps while the weights are randomised, part by part
spectrum        `map_spectra`: the grid that strided convolutions leave in the maps, at either tap of each stage
attributions    the maps: LayerCAM and its fusions, Grad-CAM++, gradient x input, energy, random
example         `explain`: one utterance with the maps of all networks, for the figures
==============  ====================================================================================================
"""
