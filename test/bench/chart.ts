import { BarChart } from "echarts/charts";
import { GridComponent, LegendComponent, TitleComponent } from "echarts/components";
import { init, use } from "echarts/core";
import { SVGRenderer } from "echarts/renderers";

use([BarChart, GridComponent, LegendComponent, TitleComponent, SVGRenderer]);

/** Grouped bars on a logarithmic axis of seconds, as SVG text. */
export function barChart(title: string, groups: readonly string[], series: ReadonlyMap<string, readonly (number | undefined)[]>): string {
  const chart = init(null, null, { renderer: "svg", ssr: true, width: 960, height: 480 });
  chart.setOption({
    animation: false,
    backgroundColor: "#ffffff",
    title: { text: title, left: "center", textStyle: { fontSize: 15 } },
    legend: { bottom: 0 },
    grid: { left: 70, right: 20, top: 50, bottom: 80 },
    xAxis: { type: "category", data: [...groups] },
    yAxis: { type: "log", name: "seconds", axisLabel: { formatter: "{value}" } },
    series: [...series].map(([name, values]) => ({
      name,
      type: "bar",
      data: values.map((value) => (value === undefined ? "-" : Math.max(0.01, Math.round(value * 100) / 100))),
      label: { show: true, position: "top", fontSize: 9 },
    })),
  });
  const svg = chart.renderToSVGString();
  chart.dispose();
  return svg;
}
