#!/bin/sh
# The whole job on made-up films: phantoms → split → tune → leaderboard → registered model → one prediction.
# Arguments are passed to tune: --trials 3, say.
set -eu
x=.venv/bin/xray-opt
films=data/phantoms

[ -d "$films" ] || "$x" data sample "$films" --patients 320 --seed 0
"$x" data prepare "$films"

base=imagenet
if ! "$x" weights; then
    base=random
    echo
    echo "!!! The ImageNet weights cannot be downloaded here: the demo goes on with RANDOM base weights."
    echo "!!! Its scores are then far below what the tool reaches. Only the demo does this by itself."
    echo
fi
"$x" tune --study studies/demo.yaml --name "demo-$base" --data "$films" --set "model.base=$base" "$@"

echo
"$x" compare "demo-$base"
film=$(ls "$films"/test/PNEUMONIA/* | head -n 1)
"$x" predict "$film" --model "models:/xray-demo@champion"
echo
echo "Both interfaces (MLflow and optuna-dashboard):  $x ui"
