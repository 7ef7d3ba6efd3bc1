"""What a folder of results says, as tables on the terminal and as one HTML page that needs no network.

options      the options of the command
model        settings, their systems and scenarios, metrics by seed
reading      folders of sweeps, comparisons and studies of the oracle, checked
differences  means and paired differences with intervals, and the sentences made of them
figures      panels drawn with matplotlib
svg          a figure as an element of the page
page         elements, tables, the frame of the page
sections     what the page says of each kind of folder
command      these put together, and the file written
"""
