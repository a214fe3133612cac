import { BarChart } from "echarts/charts";
import { GridComponent, LegendComponent, TitleComponent } from "echarts/components";
import { init, use } from "echarts/core";
import { SVGRenderer } from "echarts/renderers";

use([BarChart, GridComponent, LegendComponent, TitleComponent, SVGRenderer]);

/** Where bars begin. */
const lowest = 0.1;

/** Grouped bars on a logarithmic axis of seconds, as SVG text. */
export function barChart(title: string, groups: readonly string[], series: ReadonlyMap<string, readonly (number | undefined)[]>): string {
  const chart = init(null, null, { renderer: "svg", ssr: true, width: Math.max(960, 110 + groups.length * 48), height: 480 });
  chart.setOption({
    animation: false,
    backgroundColor: "#ffffff",
    title: { text: title, left: "center", textStyle: { fontSize: 15 } },
    // the width of a text is only guessed where there is no screen
    legend: { bottom: 0, itemGap: 60 },
    grid: { left: 70, right: 20, top: 50, bottom: 80 },
    xAxis: { type: "category", data: [...groups], axisLabel: { interval: 0, fontSize: 9 } },
    yAxis: { type: "log", name: "seconds", min: lowest, startValue: lowest, axisLabel: { formatter: "{value}" } },
    series: [...series].map(([name, values]) => ({
      name,
      type: "bar",
      data: values.map((value) => (value === undefined ? "-" : Math.max(lowest, value))),
    })),
  });
  const svg = chart.renderToSVGString();
  chart.dispose();
  return svg;
}
