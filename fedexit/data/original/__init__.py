"""Make corpora of the releases that people download, in the layout in which their authors publish them.

catalogue  the one table: archives, checksums, licences and readers of all releases
fetch      from a download, an archive or a folder to a corpus folder
download   resume and check downloads
release    find and read the files of a release
build      write the corpus folder of a release
subset     write the parts of three open releases that this project uses, as its prepared .tar files hold them
speech_commands, librispeech, iemocap, voxceleb1  readers of the paper's corpora
asc_digits, speechocean, emodb  readers of the three open corpora
"""
