"""The experiments of `equal_results.py`: tiny, and together all that a run can be made of."""

VIT = "hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4"
BASE = {
    "clients": 6,
    "rounds": 2,
    "model": f"vit({VIT})",
    "cut": 1,
    "batch_size": 64,
    "engine": "inline()",
    "checkpoint_every": 0,
}
APART = "exits=plain(); phases=phase(rounds=1, train='trunk') | phase(train='exits')"
JOINT = "exits=plain(); phases=phase(rounds=1, train='trunk') | phase(train='all')"
PSL = "strategy=parallel(average_heads=False)"
FP16 = "codec=fp16(); downlink=fp16()"
ADC = "codec=adc(ratio=0.3)"
TOP = "downlink=topk(ratio=0.2, error_feedback=True)"
COARSE = "downlink=uniform(bits=6, rounding='stochastic')"
DROP = f"model=vit({VIT}, hidden_dropout_prob=0.1)"
LENET = "model=lenet(image_size=16); clients=5; batch_size=32"
RESNET = "model=resnet18(width=4, small_images=True, image_size=16); clients=5; batch_size=32"
LORA = "model=pretrained(path='{checkpoint}', lora=2); local_steps=2"
RECIPE = (
    "augment=crop(padding=1) | flip() | mixup(); schedule=cosine(warmup=0.5); "
    "clip=norm(limit=0.5); head_optimizer=adamw(lr=0.003, no_decay=True); "
    "label_smoothing=0.1; accumulate=2; ema=0.5"
)
SGD = "head_optimizer=sgd(lr=0.05, momentum=0.9); tail_optimizer=sgd(lr=0.05, momentum=0.9)"
LONG = "rounds=8; checkpoint_every=1"
MERGE = "strategy=mergesfl(slowest=0.25, candidates=1.5)"

RUNS = {
    # strategies
    "parallel": "",
    "psl": PSL,
    "sflv1": "strategy=sflv1",
    "sflv1 compat": "strategy=sflv1(official_scripts=True)",
    "sflv2": "strategy=sflv2",
    "sflv2 phi cyclic": "strategy=sflv2(phi=1, order='cyclic')",
    "sflv2 compat": "strategy=sflv2(official_scripts=True)",
    "sflv3": "strategy=sflv3",
    "sglr": f"strategy=sglr(phi=0.75); {FP16}",
    "mergesfl": MERGE,
    "minibatch": "strategy=minibatch",
    "s2fl": "strategy=s2fl",
    "ampere": "strategy=ampere(epochs=2); rounds=3; fraction=0.6",
    "cse_fsl": "strategy=cse_fsl(h=2)",
    "cyclesl": "strategy=cyclesl(epochs=2)",
    "fsl_sage": "strategy=fsl_sage(h=2, align=1)",
    "gas": "strategy=gas; system=lte()",
    "sequential": "strategy=sequential",
    "sequential cyclic": "strategy=sequential(order='cyclic')",
    "sequential compat": "strategy=sequential(official_scripts=True)",
    "fedavg": "strategy=fedavg",
    "fedprox": "strategy=fedprox(mu=0.5)",
    "local": "strategy=local",
    "centralised": "strategy=centralised",
    # how much, by whom, on what
    "sgd": SGD,
    "adamw": "head_optimizer=adamw(lr=0.003); tail_optimizer=adamw(lr=0.003)",
    "seed": "seed=7; strategy=sflv2",
    "local steps": "local_steps=3",
    "two epochs": "local_epochs=2; strategy=sflv1; batch_size=32",
    "fraction": "fraction=0.6; rounds=3",
    "fraction psl": f"fraction=0.6; rounds=3; {PSL}",
    "fraction sflv3": "fraction=0.6; rounds=3; strategy=sflv3",
    "empty clients": "clients=40; partition=dirichlet(alpha=0.02); local_steps=1; batch_size=16",
    "iid": "partition=iid",
    "pathological": "partition=pathological(num_classes_per_partition=2)",
    "shard": "partition=shard(num_shards_per_partition=2)",
    "test fraction": "test_fraction=0.4",
    "budget": "budget=rounds(1)",
    "holdout": "holdout=0.2",
    "holdout psl": f"holdout=0.2; {PSL}",
    "holdout local": "holdout=0.2; strategy=local; fraction=0.6",
    "rotation": "skew=rotation(degrees=45)",
    "noise": "skew=noise(std=0.1) | label_noise(rate=0.2)",
    "dropout": DROP,
    "dropout sflv1": f"{DROP}; strategy=sflv1",
    "dropout fedavg": f"{DROP}; strategy=fedavg",
    # codecs and downlinks
    "fp16": FP16,
    "bf16": "codec=bf16(); downlink=bf16()",
    "uniform": "codec=uniform(bits=4, per='channel')",
    "zstd": "codec=uniform(bits=4) | zstd(level=3); downlink=zstd()",
    "adc": ADC,
    "adc fifth sflv2": "codec=adc(ratio=0.3, split='fifth'); strategy=sflv2",
    "adc weighted": "codec=adc(ratio=0.3, weighted_loss=True)",
    "adc rans": "codec=adc(ratio=0.3) | uniform(bits=8) | rans()",
    "attended": "codec=attended(ratio=0.5)",
    "topk": "codec=topk(ratio=0.1)",
    "topk uniform": "codec=topk(ratio=0.1) | uniform(bits=4); strategy=sflv1",
    "randtopk": "codec=randtopk(ratio=0.1); strategy=sflv2",
    "c3sl": "codec=c3sl(factor=4)",
    "fedlite": "codec=fedlite()",
    "splitfc": "codec=splitfc()",
    "splitcom": "codec=splitcom(threshold=0.2) | uniform(bits=4)",
    "slicer": "codec=slicer()",
    "slfac": "codec=slfac()",
    "lightsplit": "codec=lightsplit()",
    "nscsl": "codec=nscsl()",
    "bottlenet": "codec=bottlenet(ratio=0.5)",
    "bottlenet sflv1": "codec=bottlenet(ratio=0.5); strategy=sflv1",
    "downlink uniform": COARSE,
    "downlink topk": TOP,
    "downlink topk sflv1": f"{TOP}; strategy=sflv1; fraction=0.6",
    # aggregation
    "fedavgm": "aggregation=fedavgm(server_momentum=0.9); strategy=sflv1",
    "fedadam": "aggregation=fedadam(eta=0.01); strategy=fedavg",
    "fedyogi": "aggregation=fedyogi()",
    "median": "aggregation=median",
    "trimmed mean": "aggregation=trimmed_mean(beta=0.2); strategy=sflv1",
    "krum": "aggregation=krum(malicious=1); strategy=fedavg",
    "dp": "aggregation=dp(noise_multiplier=0.1, clipping_norm=1.0); strategy=sflv1",
    # other models; a ResNet has batch norm, whose statistics are averaged
    "lenet": f"{LENET}; cut=conv1; strategy=sflv2",
    "lenet topk": f"{LENET}; cut=conv1; codec=topk(ratio=0.2)",
    "resnet": f"{RESNET}; cut=stage1.1",
    "resnet sflv1": f"{RESNET}; cut=stage1.1; strategy=sflv1",
    "resnet sflv2": f"{RESNET}; cut=stage1.1; strategy=sflv2",
    "resnet fedavg": f"{RESNET}; cut=stage1.1; strategy=fedavg",
    "resnet krum": f"{RESNET}; cut=stage1.1; strategy=sflv1; aggregation=krum(malicious=1)",
    # labels stay on the client
    "u": "end=2",
    "u sflv1": "end=2; strategy=sflv1",
    "u sflv2": "end=2; strategy=sflv2",
    "u mergesfl": f"end=2; {MERGE}",
    "u fedavg": "end=2; strategy=fedavg",
    "u sequential": "end=2; strategy=sequential",
    "u psl holdout": f"end=2; holdout=0.2; {PSL}",
    "u adc": f"end=2; {ADC}",
    "u adc downlink": f"end=2; codec=adc(ratio=0.3, weighted_loss=True); {COARSE}; {DROP}",
    "u downlink topk": f"end=2; {TOP}; strategy=sflv2",
    "u resnet": f"{RESNET}; cut=stage1.1; end=stage4.1; strategy=sflv1",
    # not all tokens
    "random tokens": "tokens=random(rate=0.5); strategy=sflv2; codec=attended(ratio=0.5)",
    "gates": "cut=2; tokens=dual_gate(after=1, penalty=0.1); strategy=sflv1; batch_size=32",
    "u gates": "end=2; tokens=residual_gate()",
    # trained in stages
    "phases": f"{APART}; {SGD}; clip=norm(limit=0.5)",
    "phases psl": f"{JOINT}; {PSL}",
    "phases sflv1": f"{APART}; strategy=sflv1; head_optimizer=adamw(lr=0.01, weight_decay=0.1)",
    "phases fedadam": f"{JOINT}; strategy=fedavg; aggregation=fedadam(); ema=0.5",
    "phases scaffold": f"{APART}; strategy=scaffold",
    "phases moon": f"{APART}; strategy=moon; rounds=3",
    "phases cse_fsl": f"{APART}; strategy=cse_fsl(h=2)",
    "phases behind": JOINT.replace("plain()", "plain(after='1, 2')") + "; strategy=sflv2",
    "phases private": APART.replace("plain()", "plain(private=True)"),
    "phases gates": f"cut=2; tokens=dual_gate(after=1, penalty=0.1); {JOINT}",
    "phases bottlenet": f"codec=bottlenet(ratio=0.5); {APART}; strategy=centralised",
    "phases resnet": f"{RESNET}; cut=stage1.1; strategy=sflv1; {APART}",
    "phases u": f"{JOINT}; end=2",
    "phases u exits": f"{APART}; end=2; strategy=fedavg",
    "phases lora": f"{LORA}; {APART}",
    # adapters
    "lora": LORA,
    "lora sflv1": f"{LORA}; strategy=sflv1",
    "lora adc psl": f"{LORA}; {ADC}; {PSL}",
    # a sparse head
    "sparse": "sparsity=predefined(density=0.25, layers='all')",
    "sparse fedavg": "sparsity=random(density=0.25); strategy=fedavg",
    # a recipe
    "recipe": RECIPE,
    "recipe sflv1": f"{RECIPE}; strategy=sflv1",
    "recipe fedavg": f"{RECIPE}; strategy=fedavg; freeze=embeddings",
    "recipe u": f"{RECIPE}; end=2",
    "recipe centralised": f"{RECIPE}; strategy=centralised; precision=bf16",
    # workers of their own
    "ray 1": "engine=ray(workers=1)",
    "ray 2": "engine=ray(workers=2)",
    "ray 2 psl fraction": f"engine=ray(workers=2); {PSL}; fraction=0.6; rounds=3",
    "ray 2 sflv2 adc": f"engine=ray(workers=2); strategy=sflv2; {ADC}",
    "ray 2 u sflv1": f"engine=ray(workers=2); end=2; strategy=sflv1; {COARSE}",
    "ray 1 mergesfl": f"engine=ray(workers=1); {MERGE}",
    # stopped after two rounds or more, then resumed; each must equal the run never stopped
    "long fedadam adc": f"{LONG}; aggregation=fedadam(); {ADC}; fraction=0.6; strategy=sflv1",
    "long psl holdout": f"{LONG}; {PSL}; holdout=0.2",
    "long u sflv2": f"{LONG}; end=2; strategy=sflv2",
    "long phases": f"{LONG}; {JOINT.replace('rounds=1', 'rounds=4')}",
    "long recipe": f"{LONG}; {RECIPE}",
}
"""Settings of each run beside BASE, `key=value` with `; ` between."""

TINY = "parallel", "adc"
