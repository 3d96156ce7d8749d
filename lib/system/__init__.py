"""What every program needs: errors, files, options, devices, processes, output;
nothing about images or captions."""
