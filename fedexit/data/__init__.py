"""Turn audio files into batches of speech. Start with `corpora.open_corpus`, then `tasks.make_task`.

corpora     open, fetch and convert corpora by name or folder
places      find the folder of a corpus
folder      the manifest format
table       CSV files in any common dialect
convert     a folder of audio files as a corpus
archives    unpack .tar and .zip archives within limits
audio       decode, resample and write audio
containers  repair headers of audio files
mp3         lengths of MP3 files
checksums   hashes of clips
queen, unlabelled, packages  two corpora that come from Debian packages
original    corpora that come from public releases, in their original layouts
tasks       one module per task: clips, targets, kind of head
groups      groups of clips, their devices and depths
trials      pairs of clips for speaker verification
text        characters for CTC
batches     normalise, pad and batch clips
recordings  files and waveforms to predict
checks, inspection  checks of batches, and of all clips before training
constants   the sample rate and the shortest clip
"""
